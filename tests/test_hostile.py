"""Whatever comes in - values, text, arrays, flags - ends well or in one clear sentence."""

import dataclasses
import importlib
import inspect
import pathlib
import string

import hypothesis
import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from hostile import check_sentence, few, refused, values
from hypothesis import given
from hypothesis import strategies as st

import tf_metagrad as mg
from tf_metagrad.estimators import parse, parse_schedule

ESTIMATORS = [
    value for name in mg.estimators.__all__
    if dataclasses.is_dataclass(value := getattr(mg.estimators, name))
]  # fmt: skip
INNER = [value for value in vars(mg.inner).values() if dataclasses.is_dataclass(value)]


# Configurations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*ESTIMATORS, *INNER], ids=lambda kind: kind.__name__)
@few
@given(data=st.data())
def test_a_configuration_is_whole_or_refused(kind, data):
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    chosen = data.draw(st.dictionaries(st.sampled_from([*names, "other"]), values, max_size=3))
    needed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    with refused() if "other" not in chosen else pytest.raises(TypeError, match="'other'"):
        made = kind(**{name: 1 for name in needed} | chosen)
        assert kind.from_config(made.get_config()) == made
        assert kind.__name__ in repr(made)
        if kind in ESTIMATORS:
            made.check(mg.inner.GradientDescent(2))


words = st.sampled_from(
    ["MAML", "BinomMAML", "FOBMAML", "IMAML", "(", ")", "1", "-1", ",", "=", "truncation", "mode", "'unrolled'", ":",
     "0", "1e999", "None", "[", "]", "{", "}", "lambda", "**", "*", " ", "\n", "\0", "\ud800",
     "9" * 5000, "f'{1}'", "..."]
)  # fmt: skip
texts = st.one_of(
    st.lists(words, max_size=8).map("".join), st.text(max_size=12), st.text(string.printable, max_size=12)
)


@few
@given(texts)
@hypothesis.example("(" * 300 + "MAML" + ")" * 300)
@hypothesis.example("-" * 20_000 + "1")
@hypothesis.example("BinomMAML(" + "[" * 150 + "]" * 150 + ")")
@hypothesis.example("BinomMAML(truncation=1, truncation=2)")
@hypothesis.example("BinomMAML(**{'truncation': 1})")
@hypothesis.example("MAML\0")
def test_text_is_an_estimator_or_refused(text):
    with refused():
        assert isinstance(parse(text), mg.estimators.Estimator)
    with refused():
        schedule = parse_schedule(text)
        assert all(type(step) is int and isinstance(value, mg.estimators.Estimator) for step, value in schedule.items())


# Arrays ---------------------------------------------------------------------------------------------------------------

dtypes = st.sampled_from(["float32", "float64", "float16", "uint8", "int32", "int64", "bool", "complex64", "U3", "O"])
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
arrays = st.builds(lambda shape, dtype: np.zeros(shape, dtype), shapes, dtypes)
odd = st.one_of(arrays, st.sampled_from([None, "text", [[1], [1, 2]], {"a": 1}, object(), 3, [None, None]]))
sizes = st.one_of(st.integers(0, 3), st.sampled_from([-1, 2**31, 2**62, 2**63, 1.5, None, "2", True, np.int64(2)]))


@few
@given(x=odd, y=odd, data=st.data())
def test_from_arrays_makes_tasks_or_refuses(x, y, data):
    names = ("ways", "shots", "queries", "meta_batch", "seed", "start")
    with refused():
        mg.data.from_arrays(x, y, **{name: data.draw(sizes, name) for name in names})


@few
@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    item=st.lists(st.integers(0, 3), max_size=2).map(tuple),
    dtype=st.sampled_from(["float32", "float64", "uint8", "int64", "bool"]),
    label=st.sampled_from(["int8", "uint16", "int64", "uint64", "bool", "float32"]),
    data=st.data(),
)
def test_from_arrays_gives_what_was_asked_for(counts, item, dtype, label, data):
    ways, shots, queries, meta_batch = (data.draw(st.integers(1, 3)) for _ in range(4))
    y = np.repeat(np.arange(len(counts)), counts).astype(label)
    x = np.zeros([len(y), *item], dtype)
    good = label[0] != "f" and label != "bool" and 2 <= ways <= len(counts) and min(counts) >= shots + queries
    with refused():
        tasks = mg.data.from_arrays(x, y, ways=ways, shots=shots, queries=queries, meta_batch=meta_batch)
        assert good
        task = next(iter(tasks))
        assert task.support_x.shape == (meta_batch, ways * shots, *item)
        assert task.query_y.shape == (meta_batch, ways * queries)
        return
    assert not good


@hypothesis.settings(few, max_examples=20)
@given(st.data())
def test_sizes_of_any_kind_make_tasks_or_are_refused(data):
    names = ("ways", "shots", "queries", "meta_batch", "seed", "start")
    changed = data.draw(st.dictionaries(st.sampled_from(names), sizes, max_size=2))
    chosen = dict.fromkeys(names, 2) | changed
    with refused():
        tasks = mg.data.from_arrays(np.zeros([60, 2], np.uint8), np.arange(60) // 10, **chosen)
        if chosen["meta_batch"] <= 3:
            assert np.shape(next(iter(tasks)).support_y) == (chosen["meta_batch"], chosen["ways"] * chosen["shots"])


@pytest.fixture(scope="module")
def learner():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = mg.MetaLearner(model, loss, mg.inner.GradientDescent(1, 0.1), execution="map", jit_compile=False)
    learner.compile()
    return learner


@few
@given(parts=st.lists(odd, min_size=4, max_size=4), kind=st.sampled_from([tuple, list, lambda parts: mg.Task(*parts)]))
def test_anything_in_place_of_a_batch_is_refused(learner, parts, kind):
    with pytest.raises(ValueError) as error:
        learner.check_tasks(kind(parts))
    check_sentence(str(error.value))


@few
@given(data=st.data())
def test_a_batch_of_tasks_has_a_gradient_or_is_refused(learner, data):
    tasks, support, query = 1, 3, data.draw(st.sampled_from([1, 1, 1, 2, 0]))
    numbers = st.sampled_from([0.0, 1.0, -1.0, 1.0, 0.5, np.nan, np.inf, 1e38])
    labels = st.sampled_from([0, 1, 2, 0, 1, 2, 3, -1])

    def draw(elements, dtype, *shape):
        count = int(np.prod(shape))
        return np.array(data.draw(st.lists(elements, min_size=count, max_size=count)), dtype).reshape(shape)

    batch = mg.Task(
        draw(numbers, "float32", tasks, support, 2), draw(labels, "int32", tasks, support),
        draw(numbers, "float32", tasks, query, 2), draw(labels, "int32", tasks, query),
    )  # fmt: skip
    try:
        with refused():
            result = learner.meta_gradient(batch)
            assert all(np.isfinite(gradient).all() for gradient in result.gradients)
    except FloatingPointError as error:
        assert "task 0 diverged" in str(error) and np.max(np.abs([*batch.support_x.flat, *batch.query_x.flat])) > 1e9


# Flags ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pathlib.Path(__file__).parents[1] / "train"))
        yield importlib.import_module("settings"), importlib.import_module("pipeline")


NAMES = (
    "task ways shots queries filters pool meta_batch seed adapt inner_steps inner_learning_rate inner proximal_weight "
    "inner_tolerance learn normalization execution jit_compile estimator schedule steps meta_optimizer "
    "meta_learning_rate clipnorm cosine_decay epoch_steps validation_tasks evaluation_tasks profile_steps verbose "
    "log_steps reference_estimator"
).split()
TOKENS = (
    "0 1 2 -1 5 1e9 nan inf -inf 1e-400 99999999999999999999 true none mnist1d sinusoid adam proximal momentum weight "
    "scalar MAML FOBMAML BinomMAML(1) 0:MAML 0:MAML,1:FOMAML 1:MAML 3,4 head sngdm sgd map"
).split() + ["", " ", "\u0663", "--", "=", "\0"]


@few
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(TOKENS)), max_size=4))
def test_flags_make_a_run_or_are_refused(script, pairs):
    settings, pipeline = script
    arguments = [f"--{name}={value}" for name, value in pairs]
    with flagsaver.flagsaver():
        try:
            flags.FLAGS(["train.py", *arguments])
        except flags.Error as error:
            assert any(name in str(error) for name, _ in pairs)
            return
        with refused():
            configuration, options = settings.read()
            assert configuration.keys() >= {"task", "steps", "seed"} and "output" in options
            schedule = pipeline.make_schedule(configuration)
            inner = pipeline.make_inner(configuration)
            for estimator in schedule.values():
                estimator.check(inner)
            pipeline.make_optimizer(configuration)
