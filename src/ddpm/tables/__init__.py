"""The tables of the papers, run by name at whatever size the machine affords, the published numbers beside ours.

`published` holds what the papers print and which experiment each row is, `running` trains and scores, `writing` makes
the Markdown, `__main__` is the command: `python -m ddpm.tables --help`.
"""
