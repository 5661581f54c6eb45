"""Makes an ONNX Runtime GenAI folder for the CPU, int4 in groups of GROUP.

    python make_oga.py HF_FOLDER|CONFIG_JSON GROUP OUT_FOLDER

The library's own model builder, with 8-bit arithmetic: its fastest. Of a shape, which CONFIG_JSON
describes, it builds two layers with random weights, and the second one is repeated: a model of
billions of weights needs neither the memory nor the minutes that building it whole would take.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


def build(source: Path, group: str, out: Path, cache: str) -> None:
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(source), "-o", str(out), "-p", "int4", "-e", "cpu", "-c", cache]
    command += ["--extra_options", f"block_size={group}", "accuracy_level=4"]
    subprocess.run(command, check=True)
    check(out, {"block_size": int(group), "accuracy_level": 4})


def check(folder: Path, expected: dict[str, int]) -> None:
    """The builder ignores options that it does not know: whether it knew these."""
    import onnx

    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            found = {a.name: a.i for a in node.attribute if a.name in expected}
            if found != expected:
                raise ValueError(f"{node.name} has {found} instead of {expected}")


def build_shape(config: dict, group: str, out: Path, cache: str) -> None:
    import make_hf

    layers = config["num_hidden_layers"]
    source = Path(cache) / "two-layers"
    make_hf.write(json.dumps(config | {"num_hidden_layers": min(layers, 2)}), source)
    build(source, group, out, cache)
    if layers > 2:
        repeat_second_layer(out, layers)
    genai = json.loads((out / "genai_config.json").read_text())
    genai["model"]["decoder"]["num_hidden_layers"] = layers
    (out / "genai_config.json").write_text(json.dumps(genai, indent=4))


def repeat_second_layer(folder: Path, layers: int) -> None:
    """Turns a model of two layers into one of many: layer 1 again and again, between layer 1 and
    the norm behind the last layer. Its weights are copied and turned a little, so that no two layers
    can be taken for one."""
    import onnx

    model = onnx.load(folder / "model.onnx")
    graph = model.graph
    last = layers - 1
    second = [node for node in graph.node if of_layer(node.name, 1)]
    written = {name for node in second for name in node.output}
    weights = [tensor for tensor in graph.initializer if of_layer(tensor.name, 1)]
    others = [node for node in graph.node if not of_layer(node.name, 0)]
    after = [node for node in others if not of_layer(node.name, 1)]
    for index in range(2, layers):
        graph.node.extend(renamed(node, index) for node in second)
        graph.initializer.extend(renamed(tensor, index) for tensor in weights)
    for node in after:
        node.input[:] = [rename(name, last) if name in written else name for name in node.input]
    for values in (graph.input, graph.output, graph.value_info):
        mine = [value for value in values if of_layer(value.name, 1)]
        for index in range(2, layers):
            values.extend(renamed(value, index) for value in mine)
    sort(graph)
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).unlink()
    onnx.save(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )


def sort(graph) -> None:
    """Puts nodes behind those whose outputs they read."""
    waiting = list(graph.node)
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    ordered = []
    while waiting:
        ready = [n for n in waiting if all(i in known or not i for i in n.input)]
        assert ready, f"{waiting[0].name} reads what nobody writes"
        known.update(name for node in ready for name in node.output)
        ordered += ready
        names = {node.name for node in ready}
        waiting = [node for node in waiting if node.name not in names]
    del graph.node[:]
    graph.node.extend(ordered)


# How the builder names what belongs to layer 1, and the layer in whose place it stands.
PATTERNS = ("layers.{}/", "layers.{}.", "key_values.{}.", "present.{}.")


def of_layer(name: str, layer: int) -> bool:
    """Whether the builder made it for that layer. The norm behind the last of two layers is called
    one of layer 2."""
    return any(pattern.format(layer) in name for pattern in PATTERNS)


def rename(name: str, index: int) -> str:
    """What is called `name` in layer 1, in layer `index`; of layer 0, in the one before."""
    for layer in (1, 0):
        for pattern in PATTERNS:
            if pattern.format(layer) in name:
                return name.replace(pattern.format(layer), pattern.format(index - 1 + layer))
    return name


def renamed(item, index: int):
    """A node, a tensor or a value of layer 1, in layer `index`."""
    copy = type(item)()
    copy.CopyFrom(item)
    copy.name = rename(item.name, index)
    if raw := getattr(item, "raw_data", b""):
        turn = 64 * index % len(raw)
        copy.raw_data = raw[turn:] + raw[:turn]
    for field in ("input", "output"):
        names = getattr(item, field, None)
        if names is not None:
            getattr(copy, field)[:] = [rename(name, index) for name in names]
    return copy


def main() -> None:
    source, group, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with tempfile.TemporaryDirectory() as cache:
        if source.lstrip().startswith("{"):
            build_shape(json.loads(source), group, part, cache)
        else:
            build(Path(source), group, part, cache)
    os.replace(part, out)


if __name__ == "__main__":
    main()
