"""What hostile tests share: settings, values that configurations do not expect, and an eye on what is executed."""

import contextlib
import sys

import hypothesis
import numpy as np
from hypothesis import strategies as st

few = hypothesis.settings(
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=list(hypothesis.HealthCheck),
    database=None,
)

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 6),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.floats(0, 1),
    st.text(max_size=4),
    st.sampled_from(["mixed", "unrolled", "cg", "neumann", "symmetric", "tangent", "scalar", "weight", "auto", "", []]),
    st.lists(st.one_of(st.floats(), st.integers(0, 3), st.none(), st.text(max_size=2)), max_size=3),
    st.dictionaries(st.text(max_size=2), st.none(), max_size=1),
    st.builds(np.int64, st.integers(-3, 6)),
    st.builds(np.float32, st.floats(width=32)),
    st.builds(np.zeros, st.sampled_from([(), (0,), (2,)])),
    st.builds(object),
)


@contextlib.contextmanager
def refused(kinds=(ValueError,)):
    """The block may end well, or in one clear sentence of one of `kinds`; nothing else."""
    try:
        yield
    except kinds as error:
        check_sentence(str(error))


def check_sentence(text):
    """It is one line, and says what came, in the library's own words."""
    assert "\n" not in text and text.isprintable(), text
    assert "Received" in text or "expected" in text or text.startswith("--"), text


class Watch:
    """Records what Python's audit events say was executed, written, moved or removed while it is on."""

    CODE = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "exec", "compile")
    FILES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")

    def __init__(self):
        self.on, self.executed, self.written = False, [], []
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if not self.on:
            return
        if event in self.CODE:
            where = getattr(arguments[0], "co_filename", str(arguments))
            if "encodings" not in where:  # Python loads its text encodings when they are first needed
                self.executed.append((event, where))
        if event in ("os.remove", "os.rmdir") and arguments[1] != -1:
            return  # a name inside of an open folder, as shutil.rmtree gives it after the folder itself
        if event in self.FILES:
            self.written.append(str(arguments[1] if event in ("os.rename", "os.symlink", "os.link") else arguments[0]))
        if event == "open" and arguments[1] and set(str(arguments[1])) & set("wax+"):
            self.written.append(str(arguments[0]))


_WATCH = []


@contextlib.contextmanager
def watched():
    """Give a `Watch` that is on for the block. Audit hooks stay for ever, so a process has one."""
    if not _WATCH:
        _WATCH.append(Watch())
    watch = _WATCH[0]
    watch.on, watch.executed, watch.written = True, [], []
    try:
        yield watch
    finally:
        watch.on = False
