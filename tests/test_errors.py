"""Errors are told apart by code, then label, then class; the texts are those of MongoDB 6.0."""

import pickle

import pytest
from bson.errors import InvalidBSON, InvalidDocument
from pymongo import errors as driver

from rigatoni import codes, errors
from rigatoni.errors import (
    ConfigurationError,
    ConversionError,
    HandlerError,
    InvalidResumeTokenError,
    MaxReconnectAttemptsExceededError,
    ResumeTokenPersistenceError,
    StreamConnectionError,
    StreamError,
    StreamInvalidatedError,
)

RESUMABLE = "ResumableChangeStreamError"
FATAL = "NonResumableChangeStreamError"
NOT_FOUND = "Executor error during getMore :: caused by :: cannot resume stream; the resume token was not found."
MODIFIED = "Encountered an event whose _id field, which contains the resume token, was modified by the pipeline."

PREDICATES = {
    "resumable": errors.is_resumable,
    "unknown": errors.is_unknown,
    "history_lost": errors.is_history_lost,
    "token_not_found": errors.is_token_not_found,
    "token_corrupt": errors.is_token_corrupt,
    "oversize": errors.is_oversize,
    "configuration": errors.is_configuration,
}


def answer(code, text="it failed", *labels, name=""):
    """Build what pymongo raises for a server's answer."""
    details = {"ok": 0.0, "errmsg": text, "code": code, "codeName": name or f"Location{code}"}
    if labels:
        details["errorLabels"] = list(labels)
    kinds = {43: driver.CursorNotFound, 50: driver.ExecutionTimeout}
    return kinds.get(code, driver.OperationFailure)(text, code, details)


def not_primary(code, *labels):
    return driver.NotPrimaryError("not primary", {"errmsg": "not primary", "code": code, "errorLabels": list(labels)})


TOKEN_TEXTS = [
    (9, "resume token string was not a valid hex string"),
    (14, "BSON field '$changeStream.startAfter' is the wrong type 'string', expected type 'object'"),
    (15, "Invalid advance (1) past end of buffer[0] at offset: 0"),
    (207, "uuid must be a 16-byte binary field with UUID (4) subtype"),
    (260, "Attempting to resume a change stream using 'resumeAfter' is not allowed from an invalidate notification"),
    (40647, "Bad resume token: _data of missing or of wrong type. Expected string, got {}"),
    (40648, "Bad resume token: _typeBits of wrong type"),
    (40649, "invalid empty resume token"),
    (50795, "Invalid Resume Token: only supports version 0, 1 and 2"),
    (50796, "Resume Token does not contain version"),
    (50810, "KeyString format error: Expected type Decimal."),
    (50811, "KeyString format error: Unknown type: 255"),
    (50816, "KeyString format error: Failed to find null terminator in string."),
    # In no set: only the text tells.
    (50872, "Resume Token does not contain fromInvalidate"),
]

# Neither in a set nor naming a resume token.
HINTS = [(50615, "KeyString format error: Invalid size byte(s)."), (51057, "Token type 155 not recognized")]

COMMAND_TEXTS = [
    (2, "unknown top level operator: $foo."),
    (2, "Enumeration value 'bogus' for field '$changeStream.fullDocument' is not a valid value."),
    (9, "Unknown $jsonSchema keyword: foo"),
    (9, "Pipeline length must be no longer than 1000 stages"),
    (14, "Each element of the 'pipeline' array must be an object"),
    (14, "BSON field 'aggregate.collation' is the wrong type 'int', expected type 'object'"),
    (
        13,
        'not authorized on shop to execute command { aggregate: "orders", pipeline: [ { $match: { card: "4711" } } ] }',
    ),
    (18, "Authentication failed."),
    (20, "$group is not permitted in a $changeStream pipeline"),
    (
        47,
        "Change stream was configured to require a post-image for all update events, but the post-image was not found",
    ),
    (72, "Aggregation stage $changeStream cannot run with a readConcern other than 'majority'."),
    (73, "$changeStream may not be opened on the internal admin database"),
    (166, "Namespace x.v is a view, not a collection"),
    (168, "Invalid $set :: caused by :: Unrecognized expression '$foo'"),
    (263, "Cannot run 'aggregate' in a multi-document transaction."),
    (334, "Received authentication for mechanism SCRAM-SHA-1 which is not enabled"),
    (15959, "the match filter must be an expression in an object"),
    (40324, "Unrecognized pipeline stage name: '$foo'"),
    (40415, "BSON field '$changeStream.foo' is an unknown field."),
    (40573, "The $changeStream stage is only supported on replica sets"),
    (40602, "$_internalChangeStreamOplogMatch is only valid as the first stage in a pipeline"),
    (51091, "Regular expression is invalid: missing )"),
]

NOT_PRIMARY_CODES = (91, 189, 10107, 11600, 11602, 13435, 13436)
INTERRUPTIONS = (6, 7, 43, 50, 63, 89, 133, 134, 150, 175, 202, 216, 222, 234, 237, 262, 317, 358, 9001, 11601, 13388)

CASES = [
    *((answer(code, text), "token_corrupt") for code, text in TOKEN_TEXTS),
    *((answer(code, text), "configuration") for code, text in COMMAND_TEXTS),
    *((not_primary(code), "resumable") for code in NOT_PRIMARY_CODES),
    *((not_primary(code, RESUMABLE), "resumable") for code in NOT_PRIMARY_CODES),
    *((answer(code), "resumable") for code in INTERRUPTIONS),
    *((answer(code, "it failed", RESUMABLE), "resumable") for code in INTERRUPTIONS),
    (answer(136, "CollectionScan died due to position in capped collection being deleted."), "history_lost"),
    (
        answer(286, "Resume of change stream was not possible, as the resume point may no longer be", FATAL),
        "history_lost",
    ),
    (answer(286, "a code weighs more than a label", RESUMABLE), "history_lost"),
    (answer(280, NOT_FOUND, FATAL), "token_not_found"),
    (answer(280, MODIFIED, FATAL), "configuration"),
    (answer(10334, "BSONObj size: 20971520 (0x1400000) is invalid."), "oversize"),
    (answer(99999, "nobody knows this"), "unknown"),
    (answer(96, "operation was interrupted"), "unknown"),
    (answer(8, "assertion src/mongo/db/exec/document_value/value.cpp:325"), "unknown"),
    (answer(99999, "a label on an aggregate", RESUMABLE), "resumable"),
    (driver.OperationFailure("an answer without a code"), "unknown"),
    (driver.AutoReconnect("localhost:27017: connection closed"), "resumable"),
    (driver.NetworkTimeout("localhost:27017: timed out"), "resumable"),
    (driver.ServerSelectionTimeoutError("localhost:27017: [Errno 111] Connection refused, Timeout: 5.0s"), "resumable"),
    (driver.AutoReconnect("several", errors=["one", "two"]), "resumable"),
    (driver.WaitQueueTimeoutError("Timed out while checking out a connection"), "resumable"),
    (driver.ConnectionFailure("away"), "resumable"),
    (driver.ProtocolError("Got response id 5 but expected 4"), "resumable"),
    (driver.InvalidURI("Bad database name"), "configuration"),
    (driver.ConfigurationError("no such option"), "configuration"),
    (driver.InvalidName("database names cannot contain the character ' '"), "configuration"),
    (InvalidDocument("cannot encode object"), "configuration"),
    (driver.PyMongoError("anything else"), "unknown"),
    (OSError("not of pymongo at all"), "unknown"),
]

CLASSES = {
    "resumable": (StreamConnectionError, True),
    "unknown": (StreamConnectionError, True),
    "history_lost": (InvalidResumeTokenError, False),
    "token_not_found": (InvalidResumeTokenError, False),
    "token_corrupt": (InvalidResumeTokenError, False),
    "oversize": (StreamConnectionError, False),
    "configuration": (ConfigurationError, False),
}


def named(value):
    code = getattr(value, "code", None) or (isinstance(value, driver.NotPrimaryError) and value.details["code"])
    return f"{type(value).__name__}-{code}" if isinstance(value, Exception) else value


@pytest.mark.parametrize(("raised", "meaning"), CASES, ids=named)
def test_what_pymongo_raises_has_one_meaning_and_keeps_it_when_classified(raised, meaning):
    classified = StreamError.from_pymongo(raised)

    assert (type(classified), classified.is_retryable) == CLASSES[meaning]
    assert [name for name, holds in PREDICATES.items() if holds(raised)] == [meaning]
    assert [name for name, holds in PREDICATES.items() if holds(classified)] == [meaning]


@pytest.mark.parametrize(("raised", "meaning"), CASES, ids=named)
def test_a_classified_error_keeps_code_and_labels_and_hides_the_servers_text(raised, meaning):
    classified = StreamError.from_pymongo(raised)
    details = raised.details if isinstance(getattr(raised, "details", None), dict) else {}

    assert classified.code == details.get("code")
    assert classified.labels == set(details.get("errorLabels", ()))
    assert type(raised).__name__ in str(classified)
    assert details.get("errmsg", "no text") not in str(classified)
    assert str(details.get("code", "")) in str(classified)


def test_every_code_of_the_sets_is_tried():
    tried_on_a_real_server = {15969, 15998, 31002, 40323, 51272}
    tried = {StreamError.from_pymongo(raised).code for raised, _ in CASES} | tried_on_a_real_server

    assert codes.RESUMABLE_CODES | codes.HISTORY_LOST_CODES | codes.FATAL_CODES <= tried
    assert codes.TOKEN_CORRUPT_CODES | codes.OVERSIZE_CODES | codes.CONFIGURATION_CODES <= tried


@pytest.mark.parametrize(("code", "text"), TOKEN_TEXTS)
def test_a_damaged_token_is_blamed_when_the_command_carried_one(code, text):
    assert isinstance(StreamError.from_pymongo(answer(code, text), resuming=True), InvalidResumeTokenError)


@pytest.mark.parametrize(("code", "text"), COMMAND_TEXTS)
def test_a_wrong_pipeline_is_blamed_although_the_command_carried_a_token(code, text):
    assert isinstance(StreamError.from_pymongo(answer(code, text), resuming=True), ConfigurationError)


@pytest.mark.parametrize("code", sorted(codes.AMBIGUOUS_CODES))
@pytest.mark.parametrize("resuming", [False, True])
def test_in_doubt_nobody_is_told_to_delete_his_position(code, resuming):
    raised = answer(code, "type must be represented as a number or a string")

    assert isinstance(StreamError.from_pymongo(raised, resuming=resuming), ConfigurationError)


@pytest.mark.parametrize(("code", "text"), HINTS)
def test_a_hint_at_a_token_counts_only_where_there_was_one(code, text):
    assert errors.is_unknown(answer(code, text))
    assert errors.is_token_corrupt(StreamError.from_pymongo(answer(code, text), resuming=True))


def test_another_280_ends_the_stream_but_is_not_rescued_by_time():
    classified = StreamError.from_pymongo(answer(280, "something new", FATAL))

    assert isinstance(classified, InvalidResumeTokenError)
    assert not classified.is_retryable
    assert not any(holds(classified) for holds in PREDICATES.values())


def test_a_label_that_forbids_resuming_is_obeyed_for_a_code_that_nobody_knows():
    classified = StreamError.from_pymongo(answer(99999, "new and fatal", FATAL))

    assert isinstance(classified, StreamConnectionError)
    assert not classified.is_retryable


def test_bytes_that_cannot_be_decoded_are_a_conversion_error():
    classified = StreamError.from_pymongo(InvalidBSON("'utf-8' codec can't decode byte 0xff"))

    assert isinstance(classified, ConversionError)
    assert not any(holds(classified) for holds in PREDICATES.values())


def test_a_member_that_has_not_found_its_set_yet_is_tried_again_a_few_times():
    # A connection to it stays as it is as long as nothing breaks it, so that for ever would be in vain.
    raised = driver.ConfigurationError("Sessions are not supported by this MongoDB deployment")

    classified = StreamError.from_pymongo(raised)

    assert isinstance(classified, StreamConnectionError)
    assert classified.is_retryable and not classified.is_known


def test_a_closed_client_is_not_tried_again():
    classified = StreamError.from_pymongo(driver.InvalidOperation("Cannot use MongoClient after close"))

    assert isinstance(classified, StreamConnectionError)
    assert not classified.is_retryable
    assert "keep it open" in str(classified)


MENDS = {13: "find and changeStream", 18: "authSource", 20: "$match, $project", 40324: "spelling", 47: "whenAvailable"}
MENDS |= {40573: "rs.initiate()", 10334: 'on_oversize="stub"', 286: "on_history_lost", 260: "start_at"}


@pytest.mark.parametrize(("code", "mend"), MENDS.items())
def test_a_message_names_the_mend(code, mend):
    assert mend in str(StreamError.from_pymongo(answer(code)))


def test_a_network_error_says_where_and_why_on_one_line():
    raised = driver.ServerSelectionTimeoutError(
        "db\n\x1b[31m\u202e:1: refused, Timeout: 5.0s, Topology Description: <…>"
    )
    message = str(StreamError.from_pymongo(raised))

    assert "refused" in message
    assert "Topology" not in message
    assert message.isprintable()


def test_names_of_the_server_that_are_no_names_are_left_out():
    raised = answer(99999, "text", "a\nlabel", name="a\x1bname")

    assert str(StreamError.from_pymongo(raised)).endswith("(OperationFailure code 99999)")


def test_a_stream_error_comes_back_as_it_is():
    error = HandlerError("it failed", event="an event")

    assert StreamError.from_pymongo(error) is error
    assert not any(holds(error) for holds in PREDICATES.values())


def test_a_connection_error_of_our_own_is_known_and_retryable():
    assert errors.is_resumable(StreamConnectionError("the server did not answer a ping"))


@pytest.mark.parametrize(
    ("error", "category", "attributes"),
    [
        (ConfigurationError("text", code=13), "configuration", {"code": 13}),
        (StreamConnectionError("text", code=7, labels=["a"]), "connection", {"code": 7, "labels": {"a"}}),
        (MaxReconnectAttemptsExceededError("text", attempts=5), "max_retries", {"attempts": 5}),
        (InvalidResumeTokenError("text", code=286), "invalid_token", {"code": 286}),
        (StreamInvalidatedError("text", reason="drop"), "invalidated", {"reason": "drop"}),
        (ConversionError("text"), "conversion", {}),
        (ResumeTokenPersistenceError("text"), "persistence", {}),
        (HandlerError("text", event=5), "handler", {"event": 5}),
    ],
)
def test_an_error_tells_its_category_and_survives_pickling(error, category, attributes):
    again = pickle.loads(pickle.dumps(error))

    for one in (error, again):
        assert (one.category, str(one)) == (category, "text")
        assert {name: getattr(one, name) for name in attributes} == attributes
        assert one.is_retryable is (category == "connection")
