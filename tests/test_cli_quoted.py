import pytest

from ddpm.cli import quoted


@pytest.mark.parametrize(
    ("argument", "handed_on"),
    [
        ("resume=runs/a/lr=1,seed=2", 'resume="runs/a/lr=1,seed=2"'),  # whether it exists or not
        ("checkpoint=there,too", 'checkpoint="there,too"'),
        ("checkpoint=not,there", "checkpoint=not,there"),  # two jobs of a sweep
        ("schedule=linear,cosine", "schedule=linear,cosine"),
        ('out="a=b"', 'out="a=b"'),
        ("+data={root: 'a=b'}", "+data={root: 'a=b'}"),
        ("images=[a=b.png]", "images=[a=b.png]"),
        ("--config-dir=a=b", "--config-dir=a=b"),
        ("~callbacks.ema", "~callbacks.ema"),
    ],
)
def test_a_path_with_signs_of_hydras_grammar_is_quoted(argument, handed_on, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there,too").touch()
    assert quoted([argument]) == [handed_on]
