"""Files that a stranger could hand over, each of them bad in one way; and a child process with little memory."""

import ctypes
import functools
import gc
import io
import multiprocessing
import os
import pickle
import resource
import struct
import tempfile
import traceback
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compose import composed

from ddpm.build import build_module
from ddpm.data.facts import Facts

DIGITS = Facts("digits", (1, 8, 8), 17, tuple("0123456789"), "")
SECRET = "DDPM_TEST_SECRET"  # an environment variable that no file may have
CANARY = Path(tempfile.gettempdir()) / f"ddpm-canary-{os.getpid()}"  # what a file that runs code would make

Content = dict[str, Any]
Change = Callable[[Content], object]


@functools.cache
def _whole() -> Content:
    torch.manual_seed(0)
    module = build_module(composed("model=tiny", "lr_schedule=constant", "schedule.num_steps=20"), DIGITS)
    return {"ddpm": module.card, "state_dict": dict(module.state_dict()), "global_step": 7}


def whole() -> Content:
    """A checkpoint that opens."""
    return deepcopy(_whole())


def zipped(content: Any) -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def records(content: Any) -> dict[str, bytes]:
    """The records of that zip file."""
    with zipfile.ZipFile(io.BytesIO(zipped(content))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive(parts: Mapping[str, bytes], compressed: bool = False) -> bytes:
    """A zip file of records."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as file:
        for name, part in parts.items():
            file.writestr(name, part)
    return buffer.getvalue()


def around(pickled: bytes, content: Any = None) -> bytes:
    """A checkpoint whose structure is this pickle."""
    return archive(records(content or {"x": torch.zeros(4)}) | {"archive/data.pkl": pickled})


class Runs:
    """Unpickled, it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def touching() -> Runs:
    """Unpickled, it makes the canary."""
    return Runs(os.system, f"touch {CANARY}")


def changed(change: Change) -> bytes:
    """A checkpoint of which something is changed, before it is written as torch does."""
    content = whole()
    change(content)
    return zipped(content)


def as_group(group: str, node: Any) -> bytes:
    """A checkpoint with another node for a group of its config."""
    return changed(lambda content: content["ddpm"]["config"].update({group: node}))


def as_weight(value: Any) -> bytes:
    """A checkpoint with another value in the place of a weight (8, 1, 3, 3)."""
    return changed(lambda content: content["state_dict"].update({"diffusion.network.conv_in.weight": value}))


def endless(levels: int = 30) -> list[Any]:
    """A list whose parts are ever the same lists: a few hundred bytes, 2^levels parts."""
    inner: list[Any] = [0]
    for _ in range(levels):
        inner = [inner, inner]
    return inner


def deep(levels: int = 5000) -> list[Any]:
    """A list in a list in a list."""
    inner: list[Any] = []
    for _ in range(levels):
        inner = [inner]
    return inner


def round_and_round() -> list[Any]:
    """A list that holds itself."""
    inner: list[Any] = []
    inner.append(inner)
    return inner


def hiding() -> bytes:
    """A dictionary that hides its methods behind numbers."""
    hidden = b"".join(b"X\x04\0\0\0" + name + b"K\x01s" for name in (b"keys", b"item", b"copy"))
    return pickled_by_hand(b"ccollections\nOrderedDict\n)R}" + hidden + b"b")


def pickled_by_hand(opcodes: bytes) -> bytes:
    return around(b"\x80\x02" + opcodes + b".")


def _overlapping() -> bytes:
    """Two names in the directory for one record, so that the file unpacks to more than it has."""
    whole_file = bytearray(archive(records({"x": torch.zeros(10**6)})))
    end = whole_file.rfind(b"PK\x05\x06")
    start = struct.unpack("<I", whole_file[end + 16 : end + 20])[0]
    directory, count = bytes(whole_file[start:end]), struct.unpack("<H", whole_file[end + 8 : end + 10])[0]
    at = directory.find(b"archive/data/0") - 46
    length = 46 + sum(struct.unpack("<HHH", directory[at + 28 : at + 34]))
    copies = [directory[at : at + length].replace(b"data/0", b"data/%c" % letter) for letter in b"abcdefgh"]
    tail = struct.pack("<HHII", *[count + 8] * 2, len(directory) + 8 * length, start) + b"\0\0"
    return bytes(whole_file[:start]) + directory + b"".join(copies) + whole_file[end : end + 8] + tail


def _renamed(name: str) -> bytes:
    """A second structure under a name that some readers take for the first one's."""
    parts = records(whole())
    return archive({name: pickle.dumps(touching(), 2)} | parts)


def _shared() -> bytes:
    """A hundred tensors of the same numbers, each of which a reader would copy."""
    numbers = torch.zeros(10**5)
    return zipped({str(k): numbers[:] for k in range(100)})


def _claiming(count: int) -> bytes:
    """A storage of 4 numbers that claims to have more."""
    small, large = b"K\x04", b"J" + struct.pack("<i", count)
    pickled = records({"x": torch.zeros(4)})["archive/data.pkl"]
    return around(pickled.replace(small + b"tq\x07Q", large + b"tq\x07Q").replace(small + b"\x85", large + b"\x85"))


def cut(share: int) -> bytes:
    """The first so many hundredths of a checkpoint."""
    data = zipped(whole())
    return data[: len(data) * share // 100]


def legacy(content: Any) -> bytes:
    """As torch.save wrote it before version 1.6."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


PICKLES: dict[str, Callable[[], bytes]] = {  # nothing of which may run, or take memory
    "os.system in the config": lambda: changed(lambda c: c["ddpm"]["config"].update(seed=touching())),
    "os.system among the weights": lambda: as_weight(touching()),
    "os.system in the facts": lambda: changed(lambda c: c["ddpm"]["facts"].update(name=touching())),
    "os.system as the step": lambda: changed(lambda c: c.update(global_step=touching())),
    "os.system as the whole": lambda: zipped(touching()),
    "os.system as a key": lambda: around(pickle.dumps({touching(): 1}, 2)),
    "eval": lambda: zipped({"x": Runs(eval, f"open({str(CANARY)!r}, 'w')")}),
    "exec": lambda: zipped({"x": Runs(exec, f"open({str(CANARY)!r}, 'w')")}),
    "open": lambda: zipped({"x": Runs(open, str(CANARY), "w")}),
    "torch.load": lambda: zipped({"x": Runs(torch.load, "other.ckpt")}),
    "getattr": lambda: pickled_by_hand(b"cbuiltins\ngetattr\n"),
    "import_module": lambda: pickled_by_hand(b"cimportlib\nimport_module\n(X\x02\x00\x00\x00ostR"),
    "a new Popen": lambda: pickled_by_hand(b"csubprocess\nPopen\n(X\x04\x00\x00\x00truet\x81"),
    "protocol 4": lambda: around(pickle.dumps({"x": touching()}, 4)),
    "protocol 0": lambda: around(pickle.dumps({"x": touching()}, 0)),
    "INST": lambda: around(b"(S'touch %s'\nios\nsystem\n." % str(CANARY).encode()),
    "a bare pickle": lambda: pickle.dumps(touching()),
    "the format before zip": lambda: legacy({"x": touching()}),
    "the format before zip, harmless": lambda: legacy(whole()),
    "torch script": lambda: archive(records(whole()) | {"archive/constants.pkl": pickle.dumps(touching(), 2)}),
    "bytearray of 100 GB": lambda: zipped({"x": Runs(bytearray, 10**11)}),
    "set": lambda: zipped({"x": {1, 2}}),
    "a sparse tensor": lambda: as_weight(torch.zeros(8, 1, 3, 3).to_sparse()),
    "a quantised tensor": lambda: as_weight(
        torch._empty_affine_quantized([8, 1, 3, 3], scale=1.0, zero_point=0, dtype=torch.qint8)
    ),
    "a tensor without numbers": lambda: as_weight(torch.zeros(8, 1, 3, 3, device="meta")),
    "a terabyte of one number": lambda: as_weight(torch.zeros(1).expand(2**38)),
    "one number in the right shape": lambda: as_weight(torch.zeros(1).expand(8, 1, 3, 3)),
    "numbers that many tensors have": _shared,
    "a storage that claims more": lambda: _claiming(10**6),
    "endless lists": lambda: as_group("data", endless()),
    "deep lists": lambda: pickled_by_hand(b"]" + b"\x85" * 10**4),
    "a list of itself": lambda: as_group("schedule", round_and_round()),
    "many empty lists": lambda: around(b"\x80\x02(" + b"]" * 9 * 2**20 + b"l."),
    "compressed zeros": lambda: archive({"archive/data.pkl": bytes(2**22), "archive/version": b"3\n"}, compressed=True),
    "compressed numbers": lambda: archive(records(whole()) | {"archive/data/0": bytes(2**22)}, compressed=True),
    "records on one another": _overlapping,
    "a name in capitals": lambda: _renamed("archive/DATA.PKL"),
    "another folder": lambda: _renamed("other/data.pkl"),
    "something before the first record": lambda: bytes(30) + zipped(whole()),
    "no structure": lambda: archive({"archive/version": b"3\n"}),
    "an empty zip": lambda: archive({}),
    "an empty file": lambda: b"",
    "four bytes": lambda: b"PK\x03\x04",
    "zeros": lambda: bytes(10_000),
    "words": lambda: b"no checkpoint at all\n" * 100,
    "noise": lambda: np.random.default_rng(0).bytes(10_000),
    "noise after the magic number": lambda: b"PK\x03\x04" + np.random.default_rng(0).bytes(10_000),
    **{f"{share} % of the file": functools.partial(cut, share) for share in (1, 10, 50, 90, 99)},
}


TARGETS = (  # that no file may name
    *("os.system", "builtins.eval", "builtins.open", "torch.load", "subprocess.Popen", "pickle.loads"),
    *("ddpm.checkpoint.load", "ddpm.schedule.math.exp", "ddpm.schedule._checked", "ddpm.schedule.torch.load"),
    *("ddpm.sigma.Sigma", "ddpm.model.layers.Attention", "ddpm.data.mnist.idx", "ddpm.data.image_data.ImageData"),
    *(
        "ddpm.data.decoded.DecodedData",
        "ddpm.data.listing.listing",
        "",
        ".",
        "ddpm..model",
        "\x1b]0;x\x07",
        "a" * 10**5,
    ),
)
BELOW: tuple[dict[Any, Any], ...] = (  # that no node of a file may have
    {"_args_": [{"_target_": "builtins.open", "_args_": [str(CANARY), "w"]}]},
    {"_args_": [1, 2]},
    {"_partial_": True},
    {"_recursive_": False},
    {"_convert_": "none"},
    {"x": {"_target_": "os.system", "_args_": [f"touch {CANARY}"]}},
    {"x": [[{"_target_": "os.system", "_args_": [f"touch {CANARY}"]}]]},
    {"x": {}},
    {1: 2},
    {"x": f"${{oc.env:{SECRET}}}"},
    {"x": [f"${{oc.env:{SECRET}}}"]},
    {"x": f"${{oc.decode:${{oc.env:{SECRET}}}}}"},
    {"x": "${.y}"},
    {"x": "???"},
    {"x": torch.zeros(1)},
    {"x": (1, 2)},
)
NAN, HUGE = float("nan"), 10**9
VALUES: tuple[tuple[str, dict[str, Any]], ...] = (  # that no model can have, or that its weights do not fit
    *(("model", {"channels": n}) for n in (HUGE, 10**18, 10**400, 0, -8, 7, NAN, "8", "x", None, True, [8], 8.5, 16)),
    *(
        ("model", {"channel_mult": m})
        for m in ([], [1] * 40, [HUGE], [10**18, 1], [-1], [0], [1, NAN], "12", [1, 2, 4])
    ),
    *(("model", {"num_res_blocks": n}) for n in (HUGE, 0, -1, NAN, 2)),
    *(("model", {"attention_resolutions": r}) for r in ([HUGE], [8] * 10**4, [NAN], "x", [4])),
    *(("model", {"num_heads": n}) for n in (0, -1, HUGE, NAN)),
    *(("model", {"num_groups": n}) for n in (0, 3, HUGE)),
    *(("model", {"dropout": p}) for p in (NAN, 1.0, -1.0, "x")),
    *(("model", {"norm_eps": e}) for e in (NAN, 0.0, -1.0)),
    *(("model", {"zero_init_scale": s}) for s in (NAN, -1.0, float("inf"), 10**400)),
    ("model", {"class_conditional": True}),
    ("model", {"unknown": 1}),
    *(("schedule", {"num_steps": n}) for n in (10**12, 10**7, 1, 0, -5, NAN, "x", 2.5)),
    *(("schedule", {"beta_1": b}) for b in (NAN, 0.0, -1.0, float("inf"), "x", 2.0)),
    ("decoder", {"_target_": "ddpm.decoder.Tanh", "floor": NAN}),
    ("decoder", {"_target_": "ddpm.decoder.Tanh"}),
    ("sigma", {"_target_": "ddpm.sigma.Interpolated", "fraction": NAN}),
    ("sigma", {"_target_": "ddpm.sigma.Analytic", "num_images": 1, "batch_size": 1, "cache": "/tmp"}),
    ("sigma", {"_target_": "ddpm.sigma.LearnedRange"}),
)
BETAS: tuple[Any, ...] = (
    [NAN] * 5,
    [],
    [0.1],
    [2.0, 0.1],
    ["x"],
    [[0.1]],
    [None],
    [10**400, 0.1],
    "0.1",
    5,
    [-0.1, 0.2],
)
FACTS: tuple[dict[str, Any], ...] = (
    *({"shape": s} for s in ([3, 10**6, 10**6], [0, 8, 8], [-1, 8, 8], [1, 8], [1, 8, 8, 8], "188", None, [1, NAN, 8])),
    *({"shape": s} for s in ([3, 8, 8], [10**400, 8, 8], [1, 7, 7], [2, 8, 8])),
    *({"num_levels": n} for n in (1, 0, -3, HUGE, NAN, None, "x", [17])),
    *({"class_names": n} for n in ("x", 5, [5], None, {"a": "b"})),
    {"name": 5},
    {"note": None},
)
WEIGHTS: dict[str, Callable[[], Any]] = {
    "nan": lambda: torch.full((8, 1, 3, 3), NAN),
    "infinite": lambda: torch.full((8, 1, 3, 3), float("inf")),
    "whole numbers": lambda: torch.zeros(8, 1, 3, 3, dtype=torch.long),
    "truths": lambda: torch.zeros(8, 1, 3, 3, dtype=torch.bool),
    "another shape": lambda: torch.zeros(8, 1, 3, 4),
    "no tensor": lambda: 5,
    "a list": lambda: [0.0] * 72,
    "nothing": lambda: None,
}
WHOLE: dict[str, Change] = {  # what else may be wrong with a file of ours
    "no config": lambda c: c["ddpm"].pop("config"),
    "no facts": lambda c: c["ddpm"].pop("facts"),
    "no model": lambda c: c["ddpm"]["config"].pop("model"),
    "a config that is none": lambda c: c["ddpm"].update(config=[1]),
    "facts that are none": lambda c: c["ddpm"].update(facts="x"),
    "facts without a shape": lambda c: c["ddpm"]["facts"].pop("shape"),
    "a card that is none": lambda c: c.update(ddpm=7),
    "a step below 0": lambda c: c.update(global_step=-1),
    "a step that is none": lambda c: c.update(global_step="x"),
    "a card of 100 digits": lambda c: c.update(ddpm=10**100),
    "a step of nan": lambda c: c.update(global_step=NAN),
    "no weights": lambda c: c.update(state_dict={}),
    "weights that are none": lambda c: c.update(state_dict=5),
    "a weight too few": lambda c: c["state_dict"].popitem(),
    "a weight too many": lambda c: c["state_dict"].update({"diffusion.x": torch.zeros(1)}),
    "a weight without a name": lambda c: c["state_dict"].update({5: torch.zeros(1), "diffusion.x": 5}),
}


UNTOLD: dict[str, Change] = {  # which shows when the data are asked for
    "no data": lambda c: c["ddpm"]["config"].pop("data"),
    "data that are none": lambda c: c["ddpm"]["config"].update(data="x"),
    "no seed": lambda c: c["ddpm"]["config"].pop("seed"),
    "a seed of many numbers": lambda c: c["ddpm"]["config"].update(seed=torch.zeros(2)),
}
GOING_ON: dict[str, Change] = UNTOLD | {  # which shows when training is to go on
    "an optimiser in words": lambda c: c["ddpm"]["config"].update(optimizer="adam"),
    "an optimiser that is a number": lambda c: c["ddpm"]["config"].update(optimizer=7),
    "an optimiser of nothing": lambda c: c["ddpm"]["config"].update(optimizer=None),
    "a model of many numbers": lambda c: c["ddpm"]["config"]["model"].update(channels=torch.zeros(2)),
}


RATES: tuple[Any, ...] = (  # that a schedule of the learning rate may not bring along
    *({"last_epoch": value} for value in ("x", None, -1, 0.5)),
    *({"_step_count": value} for value in (None, [1], NAN)),
    *({"base_lrs": value} for value in (5, None, ["x"])),
    *({"_last_lr": value} for value in ([[1.0]], [10**400], [NAN])),
    *({"lr_lambdas": value} for value in ([{"step": 1}], 5)),
    *({name: 5} for name in ("step", "optimizer", "get_lr", "__class__", "x")),
    {5: 5},
    "x",
)
MOMENTS: dict[str, Callable[[dict[Any, Content]], object]] = {  # of the parameters (5, 3) and (5,), nor an optimiser
    "flat": lambda kept: kept[0].update(exp_avg=torch.zeros(1)),
    "large": lambda kept: kept[1].update(exp_avg_sq=torch.zeros(10**5)),
    "of another parameter": lambda kept: kept[0].update(exp_avg=kept[1]["exp_avg"]),
    "a number": lambda kept: kept[0].update(exp_avg=0.5),
    "none": lambda kept: kept[1].pop("exp_avg_sq"),
    "a step in words": lambda kept: kept[1].update(step="x"),
    "a step of many": lambda kept: kept[1].update(step=torch.ones(5)),
    "a step below 0": lambda kept: kept[1].update(step=torch.tensor(-1.0)),
    "no step": lambda kept: kept[0].pop("step"),
    "of no parameter": lambda kept: kept.update(x=kept[0]),
}


def parts() -> list[Content]:
    """The two parts of a checkpoint that is spread over ranks."""
    names = [name for name, value in whole()["state_dict"].items() if value.ndim and len(value) % 2 == 0]
    found = []
    for rank in range(2):
        part = whole()
        part["state_dict"] |= {name: part["state_dict"][name].chunk(2)[rank].clone() for name in names}
        found.append(part | {"sharded": {"rank": rank, "ranks": 2, "names": [*names]}})
    return found


PARTS: dict[str, Callable[[Content, Content], object]] = {  # what may be wrong with them
    "a million names": lambda a, b: [
        part["sharded"].update(names=part["sharded"]["names"][:1] * 10**6) for part in (a, b)
    ],
    "a name twice": lambda a, b: [part["sharded"]["names"].append(part["sharded"]["names"][0]) for part in (a, b)],
    "a name of nothing": lambda a, b: [part["sharded"]["names"].append("x") for part in (a, b)],
    "a name that is a list": lambda a, b: [part["sharded"]["names"].append(["x"]) for part in (a, b)],
    "a name that is a number": lambda a, b: [part["sharded"]["names"].append(5) for part in (a, b)],
    "names in a word": lambda a, b: [part["sharded"].update(names="x") for part in (a, b)],
    "names of no tensor": lambda a, b: [part["state_dict"].update({part["sharded"]["names"][0]: 5}) for part in (a, b)],
    "a billion ranks": lambda a, b: [part["sharded"].update(ranks=10**9) for part in (a, b)],
    "one rank": lambda a, b: a["sharded"].update(ranks=1),
    "no ranks": lambda a, b: a["sharded"].update(ranks=0),
    "ranks below 0": lambda a, b: a["sharded"].update(ranks=-(10**400)),
    "ranks in words": lambda a, b: a["sharded"].update(ranks="2"),
    "half a rank": lambda a, b: a["sharded"].update(ranks=2.0),
    "ranks of nan": lambda a, b: a["sharded"].update(ranks=NAN),
    "three ranks": lambda a, b: [part["sharded"].update(ranks=3) for part in (a, b)],
    "another count of ranks": lambda a, b: b["sharded"].update(ranks=3),
    "other names": lambda a, b: b["sharded"]["names"].pop(),
    "the same part twice": lambda a, b: b.update(deepcopy(a)),
    "parts in another order": lambda a, b: [
        part["sharded"].update(rank=1 - part["sharded"]["rank"]) for part in (a, b)
    ],
    "another step": lambda a, b: b.update(global_step=8),
    "a step in a list": lambda a, b: b.update(global_step=[7]),
    "other rows": lambda a, b: b["state_dict"].update({b["sharded"]["names"][0]: torch.zeros(3)}),
    "no weights": lambda a, b: b.pop("state_dict"),
    "weights that are none": lambda a, b: [part.update(state_dict=5) for part in (a, b)],
    "nothing told": lambda a, b: b.pop("sharded"),
    "a list told": lambda a, b: a.update(sharded=[1]),
    "an object": lambda a, b: b["sharded"].update(names=touching()),
}


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that claims side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def worded(length: int) -> bytes:
    """A PNG whose text inflates to so many bytes."""
    buffer = io.BytesIO()
    from PIL import Image

    Image.new("L", (8, 8)).save(buffer, "PNG")
    body = b"zTXt" + b"x\0\0" + zlib.compress(bytes(length))
    data = buffer.getvalue()
    return data[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]


def npz(compressed: bool = False, **arrays: bytes) -> bytes:
    """An .npz of arrays that are already bytes."""
    return archive({f"{name}.npy": data for name, data in arrays.items()}, compressed)


def array(shape: tuple[int, ...], kind: str, content: bytes) -> bytes:
    """An .npy that claims a shape, whatever it holds."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


def objects() -> bytes:
    """An .npy of an object that runs code."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([touching()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def within(gigabytes: float, seconds: float, work: Callable[..., None], *arguments: Any) -> None:
    """Do some work in a child that may take so much more memory than this process has, and so many seconds.

    Raises AssertionError, with the child's traceback, if it fails, dies or hangs.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_limited, args=(gigabytes, theirs, work, arguments))
    child.start()
    theirs.close()
    child.join(seconds)
    hangs = child.is_alive()
    if hangs:
        child.kill()
        child.join()
    told = ""
    with suppress(EOFError):
        told = ours.recv()
    assert not hangs, f"still at work after {seconds} s"
    assert child.exitcode == 0, told or f"the child died of {child.exitcode}"


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _limited(gigabytes: float, pipe: Any, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, taken = _address_space(), [bytearray()]  # what is free before is no room for this work
    while _address_space() < before + 2**23:
        taken.append(bytearray(2**23))
    most = _address_space() + int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        work(*arguments)
    except BaseException:
        pipe.send(traceback.format_exc()[-6000:])
        os._exit(1)
    os._exit(0)
