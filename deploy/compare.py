"""The same settings twice, in one process and on loopback, with or without kills: how far apart are the models?

    python deploy/compare.py --nodes 8 task=shakespeare rounds=5 cohort=8 max-batches=2
    python deploy/compare.py --nodes 3 --kills 10 task=emnist_lr rounds=20 cohort=6 data=digits_train.h5

With --kills, the ServerApp or the SuperLink is killed (`kill -9`) at random moments and started again, and a run
whose ServerApp was killed goes on by `flwr run` with resume=true. The exit code is 0 if the models are at most
--tolerance apart, else 1.
"""

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deploy.flower import COMPLETED, read_settings
from deploy.loopback import Loopback, end_on_signals, equal_shares, positive
from settings.errors import InputError
from settings.schema import Settings, Value
from simulation.federation import simulate
from weights.checkpoint import read_checkpoint, round_of, round_paths


def deploy(out: Path, nodes: int, config: Mapping[str, Value], kills: int, seed: int) -> None:
    """Run it on loopback until it has ended well, whatever is killed meanwhile."""
    chance = random.Random(seed)
    with Loopback(out) as loopback:
        loopback.start(equal_shares(nodes))
        run_id = loopback.submit(config)
        done = 0
        for number in range(1, kills + 1):
            started = time.monotonic()
            while finished(config) == done and time.monotonic() - started < 600:
                time.sleep(0.2)
            done = finished(config)
            # Some time in the next round, or while it is started.
            time.sleep(chance.uniform(0, time.monotonic() - started))
            if Path(str(config["save"])).exists():
                print(f"the run ended before kill {number}", flush=True)
                break
            victim = chance.choice(("superlink", "serverapp"))
            print(f"kill {number}: {victim}, after round {finished(config)}", flush=True)
            if victim == "superlink":
                loopback.kill("superlink")
                loopback.start_superlink()
            else:
                for pid in loopback.apps("superlink"):
                    os.kill(pid, signal.SIGKILL)
                run_id = loopback.submit({**config, "resume": True})
        status, details = loopback.wait(run_id, 3600)
        print(f"verdict on run {run_id}: {status} {details}")
        if status != COMPLETED:
            sys.exit(1)


def finished(config: Mapping[str, Value]) -> int:
    """The last round that has a checkpoint."""
    return max(map(round_of, round_paths(Path(str(config["logdir"])) / "checkpoints")), default=0)


def difference(one: Path, other: Path) -> float:
    """The largest absolute difference between two saved models."""
    left, right = read_checkpoint(one)[0], read_checkpoint(other)[0]
    if left.keys() != right.keys():
        raise InputError(f"{one} and {other} hold other arrays")
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=positive, default=8, help="SuperNodes, of equal shares")
    parser.add_argument("--kills", type=int, default=0, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and the victims")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-6,
        help="largest difference that is none (default: 1e-6, the order of summation); larger for models with ReLU or "
        "maximum, where a last bit may decide who gets a gradient: the CNN's differ by 3e-5 after twenty rounds",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(time.strftime("runs/compare-%Y%m%d-%H%M%S")),
        help="new folder (default: runs/compare-TIME)",
    )
    parser.add_argument("config", nargs="*", metavar="key=value", help="as in rounds=5")
    options = parser.parse_args()
    end_on_signals()
    out = options.out.resolve()
    models = [out / name / "model.safetensors" for name in ("simulated", "deployed")]
    try:
        config = read_settings(options.config)
        configs = [{**config, "logdir": str(m.parent), "save": str(m)} for m in models]
        simulate(Settings.from_config(configs[0]))
        deploy(out / "loopback", options.nodes, configs[1], options.kills, options.seed)
        apart = difference(*models)
    except InputError as error:
        print(f"compare: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    within = apart <= options.tolerance
    said = f"{'within' if within else 'over'} the tolerance of {options.tolerance:g}"
    print(f"largest difference between the final models: {apart:.3g}, {said}")
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
