"""Whatever stands in a config or in a file: it works, or is refused in one sentence. Never a traceback, a hang or more
memory than there is; so the examples run in a child with little of it."""

import signal
import struct
import tempfile
from contextlib import suppress
from copy import deepcopy
from functools import partial
from pathlib import Path

import hostile
import pytest
import torch
from compose import composed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpm import training
from ddpm.build import build_callbacks, build_data, build_loggers, build_metrics, build_module, build_sampler
from ddpm.checkpoint import load, resumable
from ddpm.cli import EXPECTED
from ddpm.drawing import checked, refuse_label, studio
from ddpm.errors import Refused
from ddpm.evaluation import Evaluation
from ddpm.instantiate import check_values
from ddpm.measuring import TYPES
from ddpm.opening import data_of, opened, quiet_trainer
from ddpm.trainer import build_trainer, refuse_batch, refuse_scaling
from ddpm.wording import sentence

GIGABYTES, SECONDS = 3, 1200
EACH = 20  # seconds of the processor

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.integers(),
    st.sampled_from([10**k for k in (3, 5, 7, 9, 12, 18, 30, 400)]),
    st.floats(),
    st.floats(0, 1),
    st.text(max_size=20),
    st.sampled_from(
        ["auto", "1", "0.5", "nan", "None", "/", "..", "\0", "${oc.env:HOME}", "???", "\x1b]0;x\x07", "é" * 999]
    ),
)
VALUE = st.one_of(PLAIN, st.recursive(PLAIN, lambda below: st.lists(below, max_size=4), max_leaves=8))
ANY = st.one_of(VALUE, st.dictionaries(st.one_of(st.text(max_size=5), st.just("_target_")), VALUE, max_size=3))


def options(count):
    return settings(
        max_examples=count, database=None, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


class TooLongError(BaseException):
    """No error that anything would take for a refusal."""


def late(*_):
    raise TooLongError


def works_or_is_refused(work):
    """Raises whatever else it ends in than what the verbs tell without a traceback; also that it lasts."""
    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, EACH)
    try:
        work()
    except EXPECTED as error:
        told = sentence(error)
        assert told
        assert all(line.isprintable() for line in told.splitlines())
        assert len(told) < 3000
        several = "\n" in told and isinstance(error, Refused)
        assert not several, told
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def places(node, above=()):
    """The keys of a config, each by the way to it."""
    for key, below in node.items():
        yield (*above, key)
        if isinstance(below, dict):
            yield from places(below, (*above, key))


def replaced(node, way, value):
    """A copy with another value there."""
    changed = deepcopy(node)
    below = changed
    for key in way[:-1]:
        below = below[key]
    below[way[-1]] = value
    return changed


def trained(config, folder):
    """All that train.py makes of a config, and one step of a model that is small."""
    training.check_place(config)
    training.settings(config)
    data = build_data(config)
    module = build_module(config, data.facts)
    build_metrics(config)
    build_sampler(config, module.diffusion)
    callbacks = build_callbacks(config, folder, data, module)
    trainer = build_trainer(config, callbacks, build_loggers(config, folder), folder=folder)
    refuse_batch(data.batch_size, trainer)
    refuse_scaling(config, trainer)
    if sum(parameter.numel() for parameter in module.parameters()) < 10**6:
        optimizer = module.configure_optimizers()["optimizer"]
        module.loss_of(data.batch("train", [0]), 0)[0].backward()
        optimizer.step()


def drawn(config, folder):
    """All that sample.py makes of a config, and one image."""
    checked(config)
    model = opened(config)
    refuse_label(config["label"], model)
    place = studio(config, model)
    place.trainer([])
    with torch.inference_mode():
        place.module.predict_step(torch.arange(1), 0)


def measured(config, folder):
    """All that evaluate.py makes of a config before it draws and measures."""
    metrics = build_metrics(config)
    check_values(config, TYPES)
    model = opened(config)
    data = data_of(model.loaded, config["data"])
    Evaluation(metrics, data, config["num_images"], config["batch_size"])
    quiet_trainer(config, [])


VERBS = {"train": trained, "sample": drawn, "evaluate": measured}


def plainly(verb, run):
    """What a user types, on a CPU."""
    asked = ["trainer.accelerator=cpu", "trainer.precision=32-true"]
    return [*asked, "model=tiny", "logger=csv"] if verb == "train" else [*asked, f"checkpoint={run}"]


def fuzz_config(verb, count, run):
    config, folder = composed(*plainly(verb, run), verb=verb), Path(tempfile.mkdtemp())

    @options(count)
    @given(changes_of(config, ANY))
    def check(changes):
        works_or_is_refused(lambda: VERBS[verb](with_changes(config, changes), folder))

    check()


WORDS = st.one_of(
    st.text(max_size=20),
    st.text("[]{}()',\"=:~+$.\\ a1", max_size=12),
    st.sampled_from(
        ["null", "???", "[]", "{}", "[1", "{a:1}", "$", "${seed}", "${oc.env:HOME}", "${x", "1e999", "nan"]
    ),
    st.sampled_from(
        ["range(1,3)", "choice(1,2)", "glob(*)", "1,2", "'", "\\'", "0x1", "-1", "tiny", "ddim", "heun", "\0"]
    ),
)


def typed(verb, *overrides):
    """What Hydra makes of a command line; until then all that is raised is told without a traceback."""
    try:
        return composed(*overrides, verb=verb)
    except Exception as error:
        raise ImportError(*error.args) from error  # one that the verbs expect


def fuzz_overrides(verb, count, run):
    config, folder = composed(*plainly(verb, run), verb=verb), Path(tempfile.mkdtemp())
    keys = st.one_of(st.sampled_from([".".join(way) for way in places(config)]), st.text(max_size=8))
    override = st.builds(
        "{}{}{}{}".format, st.sampled_from(["", "", "+", "++", "~"]), keys, st.sampled_from("==@"), WORDS
    )

    @options(count)
    @given(st.lists(override, min_size=1, max_size=2))
    def check(overrides):
        works_or_is_refused(lambda: VERBS[verb](typed(verb, *plainly(verb, run), *overrides), folder))

    check()


def read(data):
    with tempfile.NamedTemporaryFile(suffix=".ckpt") as file:
        Path(file.name).write_bytes(data)
        works_or_is_refused(lambda: data_of(load(file.name), {}))
        works_or_is_refused(lambda: resumable(Path(file.name)))


SMALL = st.integers(0, 20_000)  # where the structure and the directory are, at both ends of a file
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.one_of(SMALL, SMALL.map(int.__neg__), st.integers(0)), st.integers(0, 7)),
        st.tuples(
            st.just("number"), st.one_of(SMALL, SMALL.map(int.__neg__)), st.sampled_from([0, 1, 2**16, 2**32 - 1])
        ),
        st.tuples(st.just("cut"), st.integers(0), st.integers(0)),
        st.tuples(st.just("insert"), st.one_of(SMALL, st.integers(0)), st.binary(min_size=1, max_size=50)),
        st.tuples(st.just("splice"), st.integers(0), st.one_of(SMALL, st.integers(0))),
    ),
    min_size=1,
    max_size=4,
)


WAYS = {  # what stands in the place of the bytes from `at` on, and of how many
    "flip": lambda data, at, bit: (bytes([data[at] ^ 1 << bit]), 1),
    "number": lambda data, at, number: (struct.pack("<I", number), 4),
    "cut": lambda data, at, length: (b"", 1 + length % len(data)),
    "insert": lambda data, at, new: (new, 0),
    "splice": lambda data, at, source: (data[source % len(data) :][:3000], 3000),
}


def edited(data, edits):
    """The bytes of a file with some flipped, overwritten by a number, cut out, inserted, copied from elsewhere."""
    for way, place, what in edits:
        at = place % len(data)
        new, length = WAYS[way](data, at, what)
        data = data[:at] + new + data[at + length :] or b"\0"
    return data


OPCODES = st.one_of(st.integers(0, 255), st.sampled_from(b"}](.tRQbsuqhKJMGcX\x85\x86\x87\x88\x89N)l"))


def repickled(records, changes):
    """A zip file that is whole, in whose structure some bytes are others."""
    name = "archive/data.pkl"
    pickled = bytearray(records[name])
    for place, value in changes:
        pickled[2 + place % (len(pickled) - 2)] = value
    return hostile.archive(records | {name: bytes(pickled)})


TENSORS = st.sampled_from(
    [
        torch.zeros(()),
        torch.zeros(0),
        torch.full((8,), float("nan")),
        torch.zeros(8, dtype=torch.long),
        torch.zeros(1).expand(2**40),
        torch.zeros(8, 8).T,
        torch.zeros(8, dtype=torch.complex64),
    ]
)


def with_changes(node, changes):
    """A copy with other values in some places, as far as an earlier change has not taken these away."""
    for way, value in changes:
        with suppress(KeyError, TypeError):
            node = replaced(node, way, value)
    return node


def changes_of(node, values):
    ways = sorted(places(node), key=str)
    config = [way for way in ways if way[:2] == ("ddpm", "config")] or ways
    return st.lists(
        st.tuples(st.one_of(st.sampled_from(config), st.sampled_from(ways)), values), min_size=1, max_size=3
    )


def fuzz_checkpoint(count, run):
    whole = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    data, records = hostile.zipped(whole), hostile.records(whole)

    @options(count)
    @given(
        EDITS, st.lists(st.tuples(st.integers(0), OPCODES), min_size=1, max_size=4), changes_of(whole, ANY | TENSORS)
    )
    def check(edits, bytes_of_the_structure, values):
        read(edited(data, edits))
        read(repickled(records, bytes_of_the_structure))
        read(hostile.zipped(with_changes(whole, values)))

    check()


CONFIGS = [partial(fuzz_config, verb) for verb in VERBS]
OVERRIDES = [partial(fuzz_overrides, verb) for verb in VERBS]
FEW = [(fuzz_checkpoint, 3), *((work, 10) for work in (*CONFIGS, OVERRIDES[0]))]
MANY = [(work, 500) for work in (fuzz_checkpoint, *CONFIGS, *OVERRIDES)]


def named(work):
    return f"{work.func.__name__}_{work.args[0]}" if isinstance(work, partial) else getattr(work, "__name__", None)


@pytest.mark.parametrize(
    ("work", "count"), [*FEW, *(pytest.param(*one, marks=pytest.mark.slow) for one in MANY)], ids=named
)
def test_whatever_is_changed_it_works_or_is_refused(work, count, brief_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile.within(GIGABYTES, SECONDS, work, count, brief_run)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
