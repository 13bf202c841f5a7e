"""Builds the QDP head as TensorRT would, under its real Python bindings; `test_qdp_head.py` runs this file.

It needs a process of its own: the bindings take the name `tensorrt`, and the libraries behind them are empty
stand-ins. Real are the bindings' own classes and checks: what they accept as a plugin, how they hand attributes,
types, shapes, tactics and launches over. Stand-ins are whatever lives in the libraries: expressions of sizes (here
integers), tensors, networks, the plugin registry. No engine is built and nothing is launched.

    python qdp_contract.py BINDINGS_FOLDER STAND_INS_FOLDER KERNELS_FOLDER CASES_JSON

prints one JSON document: an answer to each case, or the sentence with which it was refused.
"""

import ctypes
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

from hpdval_edge.errors import HpedgeError
from hpdval_edge.trt import qdp_head
from hpdval_edge.trt.kernel_files import KERNEL_MANIFEST


class Expression:
    """Stands for nvinfer1::IDimensionExpr."""

    def __init__(self, value):
        self.value = value

    def is_constant(self):
        return True

    def get_constant_value(self):
        return self.value


class ExpressionBuilder:
    """Stands for nvinfer1::IExprBuilder; computes at once."""

    def __init__(self, operations):
        self.operations = {
            operations.SUM: lambda a, b: a + b,
            operations.PROD: lambda a, b: a * b,
            operations.CEIL_DIV: lambda a, b: -(-a // b),
        }

    def constant(self, value):
        return Expression(value)

    def operation(self, operation, a, b):
        return Expression(self.operations[operation](a.value, b.value))


class Extras(dict):
    """Stands for nvinfer1::ISymExprs."""

    nbSymExprs = 0


class Registry:
    """Stands for nvinfer1::IPluginRegistry."""

    def __init__(self):
        self.creators = {}

    def register_creator(self, creator, namespace):
        key = (creator.name, creator.plugin_version, namespace)
        assert key not in self.creators, f"{key} registered twice"
        self.creators[key] = creator
        return True

    def get_creator(self, name, version, namespace):
        return self.creators.get((name, version, namespace))


class TensorStandIn:
    """Stands for nvinfer1::ITensor."""

    def __init__(self, name, shape, dtype):
        self.name, self.shape, self.dtype = name, shape, dtype


def load_bindings(bindings: str, stand_ins: str) -> ModuleType:
    """The bindings' module as `tensorrt`, with what its libraries would hold replaced."""
    for library in sorted(Path(stand_ins).glob("*.so.*")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, bindings)
    import tensorrt_bindings as trt

    sys.modules["tensorrt"] = trt
    registry = Registry()
    trt.get_plugin_registry = lambda: registry
    trt.IDimensionExpr, trt.ITensor = Expression, TensorStandIn
    trt.DimsExprs = lambda length: [None] * length
    trt.ISymExpr = type("ISymExpr", (), {})
    return trt


class Network:
    """Stands for nvinfer1::INetworkDefinition: encoder in front, its outputs cls and patches."""

    def __init__(self, trt, cls, patches):
        self.trt, self.plugin, self.operands = trt, None, []
        self.inputs, self.outputs = [], [cls, patches]

    @property
    def num_outputs(self):
        return len(self.outputs)

    def get_output(self, index):
        return self.outputs[index]

    def unmark_output(self, tensor):
        self.outputs = [output for output in self.outputs if output is not tensor]

    def mark_output(self, tensor):
        self.outputs = [*self.outputs, tensor]

    def add_input(self, name, dtype, shape):
        self.inputs.append(TensorStandIn(name, self.trt.Dims(shape), dtype))
        return self.inputs[-1]

    def add_cast(self, tensor, dtype):
        return SimpleNamespace(get_output=lambda _: TensorStandIn(tensor.name, tensor.shape, dtype))

    def add_plugin(self, call, aot):
        request = self.trt.QuickPluginCreationRequest
        self.operands, shape_inputs, self.plugin = call(request.STRICT_AOT if aot else request.STRICT_JIT)
        assert shape_inputs == []
        outputs = [TensorStandIn(f"output {i}", None, None) for i in range(self.plugin.get_num_outputs())]
        return SimpleNamespace(num_outputs=len(outputs), get_output=lambda i: outputs[i])


def described(trt, shape, largest, dtype):
    """A DynamicPluginTensorDesc."""
    result = trt.DynamicPluginTensorDesc()
    result.desc.dims, result.desc.type, result.desc.format = trt.Dims(shape), dtype, trt.TensorFormat.LINEAR
    result.min, result.opt, result.max = (trt.Dims(largest),) * 3
    return result


def built(trt, plugin, shapes, dynamic, dtype):
    """What TensorRT asks of a plugin while it builds, in its order; answers as JSON has them."""
    types = plugin.get_output_data_types([dtype] * 4, [len(shape) for shape in shapes])
    builder = ExpressionBuilder(trt.DimensionOperation)
    expressions = [[Expression(size) for size in shape] for shape in shapes]
    out = [[size.value for size in shape] for shape in plugin.get_output_shapes(expressions, [], builder)]
    both = [(dynamic, shapes, dtype, slice(0, 4)), ([[-1] * len(shape) for shape in out], out, types[0], slice(4, 9))]
    in_out = [
        described(trt, tuple(shape), tuple(largest), kind)
        for known, all_largest, kind, _ in both
        for shape, largest in zip(known, all_largest, strict=True)
    ]
    offered = plugin.get_supported_format_combinations(in_out, 4)
    combinations = [[str(one.type), str(one.format)] for one in offered]
    plugin.configure_plugin(in_out[:4], in_out[4:])
    launches = {tactic: launched(plugin, in_out, builder) for tactic in select(plugin)}
    return {"types": [str(kind) for kind in types], "shapes": out, "combinations": combinations, "launches": launches}


def select(plugin):
    for tactic in plugin.get_valid_tactics():
        plugin.set_tactic(tactic)
        yield tactic


def launched(plugin, in_out, builder):
    params, extras = SimpleNamespace(), Extras()
    plugin.get_launch_params([], in_out, 4, params, extras, builder)
    assert extras.nbSymExprs == len(extras)
    entry, ptx = plugin.get_kernel([desc.desc for desc in in_out[:4]], [desc.desc for desc in in_out[4:]])
    facts = {name: expression.expr.value for name, expression in vars(params).items()}
    scalars = [extras[i] for i in range(len(extras))]
    return {
        **facts,
        "entry": entry if isinstance(entry, str) else entry.decode(),
        "ptx": ptx.decode(),
        "scalars": [scalar.expr.value for scalar in scalars],
        "scalar_types": sorted({f"{scalar.type} {scalar.dtype}" for scalar in scalars}),
    }


def bundle(folder, case):
    """What the head reads of a bundle; its kernels lie in ``folder``."""
    _, n, _, e = case["shape"]
    manifest = SimpleNamespace(
        embed_dim=case.get("bundle width", e),
        grid=(1, case.get("bundle patches", n)),
        files={KERNEL_MANIFEST: ""},
        topk=case["k"],
        alpha=case["alpha"],
    )
    return SimpleNamespace(path=folder, manifest=manifest, read=lambda name: (folder / Path(name).name).read_bytes())


def answer(trt, folder, case):
    """One case: dtype, capability, sizes b n c e, k, alpha, and what departs from them."""
    folder = folder / ("patch scores" if case.get("patch scores") else case["dtype"])
    b, n, c, e = case["shape"]
    shapes = [(b, e), (b, n, e), (c, e), (c, e)]
    dynamic = [(-1, e), (-1, -1 if case.get("patches known late") else n, e), (-1, e), (-1, e)]
    dtypes = {"fp16": trt.float16, "fp32": trt.float32}
    given = dtypes[case.get("network", case["dtype"])]
    names = case.get("border", ("cls", "patches"))
    border = [TensorStandIn(name, trt.Dims(dynamic[i]), given) for i, name in enumerate(names)]
    network = Network(trt, *border)
    qdp_head.load_bundle = lambda path: bundle(Path(path), case)
    request = {"bundle": str(folder), "capability": case["capability"], "dtype": case["dtype"]}
    try:
        qdp_head.add_head(trt, network, **request, patch_scores=case.get("patch scores", False))
    except HpedgeError as error:
        return {"refused": str(error), "error": type(error).__name__, "while": "adding"}
    try:
        asked = built(trt, network.plugin, shapes, dynamic, dtypes[case["dtype"]])
    except HpedgeError as error:
        return {"refused": str(error), "error": type(error).__name__, "while": "building"}
    return {
        **asked,
        "inputs": [(tensor.name, str(tensor.dtype), list(tensor.shape)) for tensor in network.inputs],
        "outputs": [tensor.name for tensor in network.outputs],
        "operands": [(tensor.name, str(tensor.dtype)) for tensor in network.operands],
    }


def main(bindings: str, stand_ins: str, kernels: str, cases: str) -> None:
    loaded_before = "tensorrt" in sys.modules
    trt = load_bindings(bindings, stand_ins)
    first = qdp_head.register(trt)
    answers = {name: answer(trt, Path(kernels), case) for name, case in json.loads(Path(cases).read_text()).items()}
    again = qdp_head.register(trt) is first
    print(json.dumps({"version": trt.__version__, "imported": loaded_before, "again": again, "cases": answers}))


if __name__ == "__main__":
    main(*sys.argv[1:])
