"""Meta-train an initialisation, judge it on unseen tasks, and save it.

  python train/train.py                                        MNIST-1D, 3-way 5-shot, exact MAML
  python train/train.py --task=sinusoid --estimator=MAML       regression of sine waves
  python train/train.py --task=omniglot --ways=20 --shots=5    Omniglot; --download fetches it
  python train/train.py --task=mini_imagenet --manual_dir=D    mini-ImageNet, from files in the folder D
  python train/train.py --task=tiered_imagenet --manual_dir=D  the same of tiered-ImageNet
  python train/train.py --task=cifar_fs --download             CIFAR-FS, or fc100; --download fetches CIFAR-100
  python train/train.py --schedule="0: FOMAML, 300: MAML"      cheap gradients first, then exact ones
  python train/train.py --adapt=head                           ANIL: only the layer named `head` adapts
  python train/train.py --inner=proximal --estimator=FOBMAML   first-order, by perturbed inner problems

The output folder holds config.json, history.csv, curve.png, result.json (means and 95 % intervals on unseen tasks,
after every inner step), checkpoints/, logs/ (TensorBoard) and saved_model/. The same command on the same folder goes on
from the last checkpoint, whatever ended the run before, and ends with the same numbers; another configuration is
refused. SIGTERM writes a checkpoint after the step at hand (exit status 143; `make train` turns any into 2).
A flag left out takes the default of its task, given in brackets: [mnist1d, sinusoid, omniglot, mini_imagenet,
tiered_imagenet, cifar_fs, fc100].
--log_steps and --profile_steps show in TensorBoard what a step costs and does: docs/profiling.md.
TF_CPP_MIN_LOG_LEVEL=0 in the environment shows what TensorFlow has to say.
"""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator

import settings
from absl import app, logging

QUIET = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") not in ("0", "1")


@contextlib.contextmanager
def native_stderr_held() -> Iterator[None]:
    """Hold what C++ writes to stderr while TensorFlow loads, which no setting silences; show it if loading fails."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def load():
    """Return the pipeline, and with it TensorFlow."""
    with native_stderr_held() if QUIET else contextlib.nullcontext():
        import pipeline
        import tensorflow as tf

        tf.config.list_physical_devices()
    if QUIET:
        logging.set_verbosity(logging.WARNING)
        tf.get_logger().setLevel("WARNING")
    return pipeline


class Terminated(BaseException):
    """The process was sent SIGTERM."""


class Termination:
    """Answers SIGTERM: at once with `Terminated`, or, while it is deferred, by `requested`."""

    def __init__(self):
        """Remember who had the signal, and take it over."""
        self.requested = self._deferred = False
        self._before = signal.getsignal(signal.SIGTERM)
        self.begin()

    def begin(self) -> None:
        """Take over the signal."""
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, *_) -> None:
        self.requested = True
        if not self._deferred:
            raise Terminated

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block see `requested`, and end by itself."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            raise Terminated

    def end(self) -> None:
        """Give the signal back."""
        signal.signal(signal.SIGTERM, self._before)


def main(argv: list[str]) -> None:
    """Run what the flags say; what goes wrong ends in one sentence and exit status 1, SIGTERM in 143."""
    if len(argv) > 1:
        sys.exit(f"train.py takes flags only. Received: {' '.join(argv[1:])}. See --help.")
    termination = Termination()
    try:
        configuration, options = settings.read()
        load().run(configuration, options, termination)
    except Terminated:
        print("train.py: terminated; the same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted; the same command goes on from the last checkpoint.")
    finally:
        termination.end()


if __name__ == "__main__":
    app.run(main, flags_parser=lambda argv: settings.parse(argv, __doc__))
