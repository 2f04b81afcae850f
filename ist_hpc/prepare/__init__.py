"""Converts published data sets to HDF5 shards: `python -m ist_hpc.prepare`.

A new data set is a module here and a line in `DATASETS`. The module has

    HELP                     one line for --help
    EXAMPLES                 command lines for its own --help
    add_arguments(parser)    its arguments
    run(args)                does it; `args.command_line` is the whole command, for meta.json

and imports slow modules inside its functions, so that --help is quick.
"""

DATASETS = {
    "cifar100": "ist_hpc.prepare.cifar100",
    "digits": "ist_hpc.prepare.digits",
    "speech": "ist_hpc.prepare.speech.conversion",
    "synthetic": "ist_hpc.prepare.synthetic",
    "xmc": "ist_hpc.prepare.xmc.conversion",
}
