"""Exporters: one file per format, named as recipes name it; the directory is the registry.

An exporter declares

PACKAGES: the packages that it imports, all in the extra named after the file.

SUFFIX: of its artifacts, each of which is one file, or one folder where a format is several files that belong together.

RUNTIME: what `load` runs the artifact in.

Config: its options. Where a format has the option, it is called

    precision: float32 | float16     what the graph computes in, overflow checked; inputs and outputs stay float32
    dynamic: true | false            height and width of all inputs with four axes are free, else the example's
    layout: nchw | nhwc              of inputs and outputs with four axes
    pixels: float32 | uint8          of a component that makes pictures: [0, 1], or whole numbers 0..255

refuse(weight_bits, granularity, activation_bits=32, config=None) -> list[str]: one sentence for each reason why the
format cannot hold such layers, with what to choose instead (the word "choose" is in it).

export(module, example, path, config, *, metadata, output="image"): the whole artifact or nothing; same module, same
bytes; batch 1; inputs named after the parameters of `forward` (`_labels.input_names`), the output after `output`;
metadata inside (`_labels.with_inputs`).

load(path, *, threads) -> callable: takes and gives what the torch module takes and gives, whatever layout and types the
artifact has: NCHW float32, token ids of any whole type; a batch runs sample by sample.

read_back(path) -> dict[str, QuantizedWeight]: the integers and scales in the artifact, by layer, as they were in the
variant.

partitions(path) -> int, where the format has them: into how many pieces the runtime cuts the graph.

A damaged or foreign artifact is a UserError from `load` and `read_back`, a missing package a MissingExtra from all that
needs it. `compress.files` copies, measures and lists artifacts of both shapes; `_held` asks `refuse` layer by layer,
`_sizes` finds the free axes, `_decomposed` spells quantized layers out in operators that several backends recognise.
"""
