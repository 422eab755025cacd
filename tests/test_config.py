"""Knobs refuse what can never work and say how to mend it; the URI never shows its password."""

import copy
import dataclasses
import logging
import pickle
import traceback
from urllib.parse import quote_plus

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo.collation import Collation

from rigatoni import config
from rigatoni.config import URI, ChangeStreamConfig, RetryPolicy
from rigatoni.errors import ConfigurationError

NAN, INFINITE = float("nan"), float("inf")
BOTH = pytest.mark.parametrize("kind", [ChangeStreamConfig, RetryPolicy])


def test_the_defaults_are_those_of_the_manual():
    retry = RetryPolicy()

    assert dataclasses.asdict(ChangeStreamConfig()) == {
        "pipeline": (),
        "full_document": None,
        "full_document_before_change": None,
        "show_expanded_events": False,
        "batch_size": 1000,
        "max_await_time": 1.0,
        "resume_token": None,
        "initial_backoff": 0.1,
        "max_backoff": 30.0,
        "max_reconnect_attempts": 5,
        "backoff_jitter": 0.1,
        "collation": None,
        "comment": None,
    }
    assert (retry.max_attempts, retry.retry_on) == (3, Exception)
    assert (retry.initial_backoff, retry.max_backoff, retry.backoff_jitter) == (0.1, 30.0, 0.1)


NO_NUMBERS = [True, "1", None, NAN, [1]]
NO_SECONDS = [0, -1, INFINITE, 10**400, *NO_NUMBERS]

REFUSED = [
    *(("initial_backoff", value) for value in NO_SECONDS),
    *(("max_backoff", value) for value in NO_SECONDS),
    *(("max_await_time", value) for value in NO_SECONDS),
    *(("backoff_jitter", value) for value in (-0.1, 1.1, INFINITE, *NO_NUMBERS)),
    *(("batch_size", value) for value in (0, -1, 1.0, INFINITE, *NO_NUMBERS)),
    *(("max_reconnect_attempts", value) for value in (-1, 1.0, INFINITE, *NO_NUMBERS)),
    *(("pipeline", value) for value in ("[]", b"[]", {"$match": {}}, [1], [[]], None, 5, iter(()))),
    *(("full_document", value) for value in ("off", "updatelookup", "", 5, True, ["default"])),
    *(("full_document_before_change", value) for value in ("default", "updateLookup", "", 5, False)),
    *(("show_expanded_events", value) for value in (1, 0, "true", None)),
    *(("resume_token", value) for value in ({}, {"_data": 5}, {"_data": b"82"}, "82", 5, ["_data"])),
    *(("collation", value) for value in ("fr", 5, [("locale", "fr")])),
]
REFUSED_RETRY = [
    *(("max_attempts", value) for value in (-1, 1.0, INFINITE, *NO_NUMBERS)),
    *(("retry_on", value) for value in ((), "Exception", int, (ValueError, int), [ValueError], ValueError(), None)),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_config_refuses_what_can_never_work_and_names_the_field(name, value):
    with pytest.raises(ConfigurationError, match=f"^{name} must be "):
        ChangeStreamConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), REFUSED_RETRY)
def test_a_retry_policy_refuses_what_can_never_work_and_names_the_field(name, value):
    with pytest.raises(ConfigurationError, match=f"^{name} must be "):
        RetryPolicy(**{name: value})


@BOTH
def test_a_first_wait_longer_than_the_longest_is_refused(kind):
    with pytest.raises(ConfigurationError, match="initial_backoff must not be above max_backoff: lower"):
        kind(initial_backoff=2, max_backoff=1)


def test_what_makes_sense_is_accepted():
    for name in ("updateLookup", "whenAvailable", "required", "default", None):
        assert ChangeStreamConfig(full_document=name).full_document == name
    for name in ("off", "whenAvailable", "required", None):
        assert ChangeStreamConfig(full_document_before_change=name).full_document_before_change == name
    assert ChangeStreamConfig(max_reconnect_attempts=0, initial_backoff=1, max_backoff=1).initial_backoff == 1.0
    assert ChangeStreamConfig(collation=Collation("fr")).collation == {"locale": "fr"}
    for kinds in (gevent.Timeout, (ValueError, gevent.Timeout), BaseException):
        assert RetryPolicy(retry_on=kinds).retry_on == kinds


def test_a_config_does_not_change_with_what_it_was_made_from():
    stage, token, comment = {"$match": {"a": [1]}}, {"_data": "82", "_typeBits": b"8"}, {"by": ["me"]}
    pipeline = [stage]
    frozen = ChangeStreamConfig(pipeline=pipeline, resume_token=token, comment=comment, collation=stage)
    before = copy.deepcopy(dataclasses.asdict(frozen))
    stage["$match"]["a"].append(2)
    pipeline.append({})
    token["_data"] = "83"
    comment["by"].append("you")

    assert dataclasses.asdict(frozen) == before
    assert isinstance(frozen.pipeline, tuple)
    with pytest.raises(dataclasses.FrozenInstanceError):
        frozen.batch_size = 5


def test_a_config_does_not_show_its_resume_token():
    assert "82AB" not in repr(ChangeStreamConfig(resume_token={"_data": "82AB"}))


def test_changes_to_a_config_are_checked_like_a_new_one():
    assert dataclasses.replace(ChangeStreamConfig(), batch_size=5).batch_size == 5
    with pytest.raises(ConfigurationError, match="batch_size"):
        dataclasses.replace(ChangeStreamConfig(), batch_size=0)


@BOTH
@settings(deadline=None)
@given(initial=st.floats(1e-6, 1e3), times=st.floats(1, 1e6), jitter=st.floats(0, 1), attempt=st.integers(1, 5000))
def test_a_wait_doubles_up_to_the_longest_and_spreads_by_half_the_jitter(kind, initial, times, jitter, attempt):
    longest = initial * times
    policy = kind(initial_backoff=initial, max_backoff=longest, backoff_jitter=jitter)
    middle = min(initial * 2 ** min(attempt - 1, 100), longest)

    assert middle * (1 - jitter / 2) <= policy.backoff(attempt) <= middle * (1 + jitter / 2)
    assert policy.backoff(attempt) <= longest * (1 + jitter / 2)


@BOTH
def test_without_jitter_the_waits_are_exact_and_no_attempt_overflows(kind):
    policy = kind(initial_backoff=0.5, max_backoff=7, backoff_jitter=0)

    assert [policy.backoff(attempt) for attempt in (1, 2, 3, 4, 5, 2000, 10**9)] == [0.5, 1, 2, 4, 7, 7, 7]


def test_the_waits_are_spread_over_the_whole_width():
    policy = RetryPolicy(initial_backoff=1, backoff_jitter=1)
    waits = [policy.backoff(1) for _ in range(1000)]

    assert 0.5 <= min(waits) < 0.6
    assert 1.4 < max(waits) <= 1.5


SETTINGS = {
    "pipeline": ('[{"$match": {"operationType": "insert"}}]', [{"$match": {"operationType": "insert"}}]),
    "full_document": ("updateLookup", "updateLookup"),
    "full_document_before_change": ("whenAvailable", "whenAvailable"),
    "show_expanded_events": ("True", True),
    "batch_size": ("50", 50),
    "max_await_time": ("0.5", 0.5),
    "resume_token": ('{"_data": "82"}', {"_data": "82"}),
    "initial_backoff": ("1", 1.0),
    "max_backoff": ("2.5", 2.5),
    "max_reconnect_attempts": ("0", 0),
    "backoff_jitter": ("0.2", 0.2),
    "collation": ('{"locale": "fr"}', {"locale": "fr"}),
    "comment": ('"nightly"', "nightly"),
}


def test_an_environment_sets_every_field_by_its_type():
    environment = {f"RIGATONI_{name.upper()}": text for name, (text, _) in SETTINGS.items()}
    typed = ChangeStreamConfig(**{name: value for name, (_, value) in SETTINGS.items()})

    assert ChangeStreamConfig.from_mapping(environment) == typed
    assert {field.name for field in dataclasses.fields(typed)} == SETTINGS.keys()


def test_typed_values_of_a_flask_configuration_are_taken_as_they_are():
    stages = [{"$match": {"a": 1}}]
    flask = {"RIGATONI_PIPELINE": stages, "RIGATONI_BATCH_SIZE": 5, 5: "no text"}

    assert ChangeStreamConfig.from_mapping(flask) == ChangeStreamConfig(pipeline=stages, batch_size=5)
    assert RetryPolicy.from_mapping({"RIGATONI_RETRY_RETRY_ON": (ValueError,)}) == RetryPolicy(retry_on=(ValueError,))


def test_each_class_reads_its_own_prefix_and_an_empty_text_is_not_set():
    environment = {
        "RIGATONI_RETRY_MAX_ATTEMPTS": "7",
        "RIGATONI_MAX_BACKOFF": "",
        "BATCH_SIZE": "9",
        "X_BATCH_SIZE": "8",
    }

    assert RetryPolicy.from_mapping(environment) == RetryPolicy(max_attempts=7)
    assert ChangeStreamConfig.from_mapping(environment) == ChangeStreamConfig()
    assert ChangeStreamConfig.from_mapping(environment, prefix="X_").batch_size == 8


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("BATCH_SIZE", "s3cret"),
        ("BATCH_SIZE", "1e3"),
        ("MAX_BACKOFF", "s3cret"),
        ("MAX_BACKOFF", "nan"),
        ("SHOW_EXPANDED_EVENTS", "s3cret"),
        ("FULL_DOCUMENT", "s3cret"),
        ("PIPELINE", "s3cret"),
        ("PIPELINE", '{"s3cret": 1}'),
        ("PIPELINE", '[{"$match": {"$expr": {"$function": {"body": "s3cret"}}}}]'),
        ("PIPELINE", "[" * 100_000),
        ("COMMENT", "s3cret"),
        ("BATCH_SIZE", None),
        ("BATCH_SIZE", True),
    ],
)
def test_a_bad_value_is_refused_by_its_key_and_never_shown(key, value):
    with pytest.raises(ConfigurationError, match=f"^RIGATONI_{key} must be ") as refused:
        ChangeStreamConfig.from_mapping({f"RIGATONI_{key}": value})

    shown = "".join(traceback.format_exception(refused.value))
    assert "s3cret" not in shown
    assert refused.value.__context__ is None


def test_waits_that_contradict_each_other_are_refused_by_their_keys():
    with pytest.raises(ConfigurationError, match="RIGATONI_RETRY_INITIAL_BACKOFF, RIGATONI_RETRY_MAX_BACKOFF"):
        RetryPolicy.from_mapping({"RIGATONI_RETRY_INITIAL_BACKOFF": "99"})


def test_misspelt_names_are_listed_in_one_warning_without_values(caplog):
    environment = {"RIGATONI_RETRY_MAX_ATEMPTS": "1", "RIGATONI_MAX_BACKOF": "s3cret", "RIGATONI_x\n": "c"}
    ChangeStreamConfig.from_mapping(environment)
    (record,) = caplog.records

    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith("'RIGATONI_MAX_BACKOF', 'RIGATONI_RETRY_MAX_ATEMPTS', 'RIGATONI_x\\n'")


def test_names_that_are_known_are_no_reason_to_warn(caplog):
    ours = dict.fromkeys(("RIGATONI_URI", "RIGATONI_MONGOD", "RIGATONI_RETRY_MAX_ATTEMPTS", "RIGATONI_BATCH_SIZE"), "5")
    ChangeStreamConfig.from_mapping({**ours, "RIGATONI_MY_PAGE": "a"}, known=["RIGATONI_MY_*"])

    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "hosts", "database"),
    [
        ("mongodb://localhost", ("localhost",), None),
        ("mongodb://u:p@a:1,b:2/shop?replicaSet=x", ("a:1", "b:2"), "shop"),
        ("mongodb://u:p@ss@a/shop.orders", ("a",), "shop"),
        ("mongodb+srv://u:p@cluster.example.net/?w=1", ("cluster.example.net",), None),
        ("mongodb://[::1]:27017,[fe80::1%eth0]/a%20b", ("[::1]:27017", "[fe80::1%eth0]"), "a b"),
        ("mongodb://%2Ftmp%2Fmongodb-27017.sock?w=1", ("%2Ftmp%2Fmongodb-27017.sock",), None),
    ],
)
def test_a_uri_tells_its_hosts_and_its_database(text, hosts, database):
    uri = URI(text)

    assert (uri.hosts, uri.database, uri.reveal()) == (hosts, database, text)
    assert (str(uri), repr(uri)) == (",".join(hosts), f"<URI {','.join(hosts)}>")


WRONG_URIS = """
    s3cret http://u:s3cret@a mongodb:/u:s3cret@a mongodb:// mongodb:///s3cret mongodb://u:s3cret@ mongodb://u:s3cret@a,,b
    mongodb://u:s3cret mongodb://u:s3cret/x@a mongodb://u:s3cret?x@a mongodb://u:p@a/?appName=s3cret@b
"""


@pytest.mark.parametrize("text", [*WRONG_URIS.split(), "mongodb://u:s3cret@a b", "", b"s3cret", 5])
def test_a_wrong_uri_is_refused_without_being_shown(text):
    with pytest.raises(ConfigurationError, match="URI") as refused:
        URI(text)

    # The frame of this test holds the text itself; those of the library must not.
    shown = traceback.TracebackException.from_exception(refused.value, capture_locals=True)
    frames = [frame for frame in shown.stack if frame.filename == config.__file__]
    assert len(frames) == 1
    assert "s3cret" not in f"{refused.value} {frames[0].locals}"


@settings(deadline=None)
@given(st.text(), st.text())
def test_of_a_uri_with_any_password_only_the_host_is_shown_or_a_fixed_refusal(user, password):
    for written in (f"{user}:{password}", f"{quote_plus(user)}:{quote_plus(password)}"):
        try:
            uri = URI(f"mongodb://{written}@db.example:27017/shop")
        except ConfigurationError as error:
            assert str(error).startswith("the URI has an @ behind its hosts: escape")
            assert set("/?") & set(written)
        else:
            assert f"{uri} {uri!r} {uri.hosts} {uri.database}" == (
                "db.example:27017 <URI db.example:27017> ('db.example:27017',) shop"
            )


def test_a_uri_is_neither_pickled_nor_found_in_its_attributes():
    uri = URI("mongodb://u:s3cret@a")

    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(uri)
    assert "s3cret" not in str(vars(uri))
