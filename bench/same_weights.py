"""Does a change keep the weights to the last bit? All configurations, ten rounds, on 1 to 4 ranks.

    python bench/same_weights.py FILE [--package FOLDER] [--data FOLDER]

Trains with the `ist_hpc` of FOLDER (by default this checkout), and writes a line a run: a
configuration, ranks, and the SHA-256 over all tensors of the checkpoint, their names and shapes
included. Two files of two versions of the package, made on one machine, must be the same:

    git worktree add /tmp/before COMMIT
    python bench/same_weights.py before.txt --package /tmp/before
    python bench/same_weights.py after.txt && diff before.txt after.txt && echo the same

Two local steps a round. Wide models are made narrow, and Amazon-670k small, with made data. The
shards lie in --data; those that are missing are made by this checkout from --input, a folder with
`speech_commands`, `cifar-100-python` and `xmc/Delicious`.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py

ROOT = Path(__file__).resolve().parent.parent
SHORT = ("train.local_steps=2", "train.rounds=10", "train.epochs=null", "evaluate.every_epochs=0")
NARROW = {
    "quickstart": ("model.hidden=[64,48]",),
    "speech2": ("model.hidden=[512]",),
    "speech3": ("model.hidden=[512,256]",),
    "amazon670k": ("model.inputs=900", "model.outputs=1200", "model.hidden=[16]"),
    "delicious": ("model.hidden=[64]", "evaluate.every_rounds=0"),
    "vgg11_cifar100": ("model.hidden=[64,48]", "model.channels=[8,8,12,12,16,16,16,16]"),
    "resist_cifar100": ("model.channels=[8,8,12,16]", "model.sections=[1,1,6,1]"),
}
"""What is set of each configuration, by its file's name."""
OPTIONS = {
    "speech3": (("optimizer.kind=adam",), ("train.algorithm=local_sgd",)),
    "amazon670k": (("model.loss=bce",), ("optimizer.kind=adam",)),
    "vgg11_cifar100": (("model.deal_channels=true",),),
    "resist_cifar100": (("optimizer.state=carry",),),
}
"""Further runs of a configuration."""


def prepare(data: Path, sources: Path) -> dict[str, Path]:
    """The shards of each configuration, made if they are not there; by the configuration's name."""
    text = sources / "xmc" / "Delicious"
    made = {
        "digits": [],
        "speech": ["--input", sources / "speech_commands"],
        "cifar100": ["--input", sources / "cifar-100-python"],
        "delicious": ["--train", text / "train.txt", "--test", text / "test.txt"],
        "amazon": ["--like", "amazon670k", "--train-rows", "400", "--test-rows", "40"],
    }
    made["amazon"] += ["--features", "900", "--labels", "1200"]
    kinds = {"delicious": "xmc", "amazon": "synthetic"}
    for name, words in made.items():
        command = [sys.executable, "-m", "ist_hpc.prepare", kinds.get(name, name), *words]
        subprocess.run([*command, "--output", data / name, "--if-missing"], cwd=ROOT, check=True)
    of = {"quickstart": "digits", "amazon670k": "amazon", "delicious": "delicious"}
    of |= {"vgg11_cifar100": "cifar100", "resist_cifar100": "cifar100"}
    return {name: data / of.get(name, "speech") for name in NARROW}


def fingerprint(checkpoint: Path) -> str:
    """SHA-256 over the tensors of a checkpoint, as its main file shows them."""
    digest = hashlib.sha256()
    with h5py.File(checkpoint / "checkpoint.h5", "r") as file:
        names: list[str] = []
        file.visititems(
            lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
        )
        for name in sorted(names):
            values = file[name][()]
            digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
            digest.update(values.tobytes())
    return digest.hexdigest()


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=argparse.FileType("w"), metavar="FILE")
    parser.add_argument("--package", default=str(ROOT), metavar="FOLDER")
    parser.add_argument("--data", default=str(ROOT / "data" / "same-weights"), metavar="FOLDER")
    parser.add_argument("--input", default=str(ROOT.parent / "shared" / "data"), metavar="FOLDER")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", default=sorted(NARROW), metavar="NAME")
    args = parser.parse_args()
    data = prepare(Path(args.data).resolve(), Path(args.input))
    package = Path(args.package).resolve()
    alone = {"OMP_NUM_THREADS": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
    alone |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    for name in args.only:
        for further in ((), *OPTIONS.get(name, ())):
            settings = (*SHORT, f"data.path={data[name]}", *NARROW[name], "data.batch_size=16")
            for ranks in args.ranks:
                with tempfile.TemporaryDirectory() as runs:
                    words = ["--config", f"configs/{name}.yaml", "--runs", runs, "--name", "run"]
                    command = [
                        ROOT / "tools/mpirun.sh",
                        "--quiet",
                        "-np",
                        str(ranks),
                        sys.executable,
                    ]
                    command += ["-m", "ist_hpc.train", *words, "--set", *settings, *further]
                    done = subprocess.run(
                        command,
                        cwd=package,
                        env={**os.environ, **alone},
                        capture_output=True,
                        text=True,
                    )
                    if done.returncode:
                        sys.exit(f"{name} on {ranks} ranks failed:\n{done.stdout}{done.stderr}")
                    found = fingerprint(Path(runs) / "run" / "checkpoints" / "round-00000010")
                line = f"{' '.join((name, *further)):48} {ranks} rank(s)  {found}"
                print(line, flush=True)
                args.output.write(f"{line}\n")


if __name__ == "__main__":
    main()
