"""Speed beside the libraries that one would otherwise use, and beside what the machine can do.

One process for each contender, alive for as long as its group of rows is measured; only one of them works at
any time. The one that asks (`race`) imports nothing heavy; what a contender does for a task is in `ours`,
`peer_diffusers`, `peer_denoising`, `scores` and `floor`, and its clock is in `pace`.
"""
