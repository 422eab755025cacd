"""The server's error codes, by what they mean for a change stream; `errors.py` has one predicate for each set.

Official names: https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml; a "Location" has none.
"""

from __future__ import annotations

#: The server or the way to it was interrupted: open the stream again.
RESUMABLE_CODES = frozenset(
    {
        6,  # HostUnreachable
        7,  # HostNotFound
        43,  # CursorNotFound
        50,  # MaxTimeMSExpired
        63,  # StaleShardVersion
        89,  # NetworkTimeout
        91,  # ShutdownInProgress
        133,  # FailedToSatisfyReadPreference
        134,  # ReadConcernMajorityNotAvailableYet
        150,  # StaleEpoch
        175,  # QueryPlanKilled
        189,  # PrimarySteppedDown
        202,  # NetworkInterfaceExceededTimeLimit
        216,  # ElectionInProgress
        222,  # CloseChangeStream
        234,  # RetryChangeStream
        237,  # CursorKilled
        262,  # ExceededTimeLimit
        317,  # ConnectionPoolExpired
        358,  # InternalTransactionNotSupported
        9001,  # SocketException
        10107,  # NotWritablePrimary
        11600,  # InterruptedAtShutdown
        11601,  # Interrupted
        11602,  # InterruptedDueToReplStateChange
        13388,  # StaleConfig
        13435,  # NotPrimaryNoSecondaryOk
        13436,  # NotPrimaryOrSecondary
    }
)

#: The oplog no longer holds what comes next.
HISTORY_LOST_CODES = frozenset(
    {
        136,  # CappedPositionLost: an open cursor was overtaken
        286,  # ChangeStreamHistoryLost
    }
)

#: Two meanings, told apart by the text: the token was not found, or the pipeline changed the _id of an event.
FATAL_CODES = frozenset(
    {
        280,  # ChangeStreamFatalError
    }
)

#: The server cannot read the resume token. Damaged ones earn dozens of further codes, which the text gives away.
TOKEN_CORRUPT_CODES = frozenset(
    {
        15,  # Overflow
        207,  # InvalidUUID
        260,  # InvalidResumeToken
        40647,  # Location40647: _data is missing or no string
        40648,  # Location40648: _typeBits is no binary
        40649,  # Location40649: empty
        50795,  # Location50795: unknown version
        50796,  # Location50796: without a version
        50810,  # Location50810: _typeBits do not fit
        50811,  # Location50811: unknown type
        50816,  # Location50816: cut off
    }
)

#: A damaged token earns these, and so does a wrong pipeline.
AMBIGUOUS_CODES = frozenset(
    {
        9,  # FailedToParse
        14,  # TypeMismatch
    }
)

#: A "required" image that the server does not have; the text says of which event.
NO_IMAGE_CODES = frozenset(
    {
        47,  # NoMatchingDocument
    }
)

#: An event that the server cannot send, at every attempt again.
OVERSIZE_CODES = frozenset(
    {
        10334,  # BSONObjectTooLarge
    }
)

#: Nothing gets better by itself: the options, the pipeline, the privileges or the server's set-up must change.
CONFIGURATION_CODES = AMBIGUOUS_CODES | frozenset(
    {
        2,  # BadValue
        13,  # Unauthorized
        18,  # AuthenticationFailed
        20,  # IllegalOperation
        47,  # NoMatchingDocument
        72,  # InvalidOptions
        73,  # InvalidNamespace
        166,  # CommandNotSupportedOnView
        168,  # InvalidPipelineOperator
        263,  # OperationNotSupportedInTransaction
        334,  # MechanismUnavailable
        15959,  # Location15959: $match is no document
        15969,  # Location15969: $project is no document
        15998,  # Location15998: an empty field name in a path
        31002,  # Location31002: $unset takes a name or a list
        40323,  # Location40323: a stage has one field
        40324,  # Location40324: unknown stage
        40415,  # Location40415: unknown option
        40573,  # Location40573: no replica set
        40602,  # Location40602: a second $changeStream
        51091,  # Location51091: wrong regular expression
        51272,  # Location51272: empty $project
    }
)

RESUMABLE_LABEL = "ResumableChangeStreamError"
NON_RESUMABLE_LABEL = "NonResumableChangeStreamError"

_STAGES = "$match, $project, $addFields, $set, $unset, $replaceRoot, $replaceWith and $redact"
#: What to do about it, where the code alone says so.
MENDS = {
    13: "the user may not watch this: grant it find and changeStream on what it watches, or put a user into the URI",
    18: "the server refuses the user: check user name, password and authSource of the URI",
    20: f"a stage is not allowed in a change stream: the pipeline takes {_STAGES}",
    47: 'a "required" image is missing: go on with "whenAvailable"; for later events to have theirs, enable '
    "changeStreamPreAndPostImages of the collection by collMod",
    72: "an option is not allowed with a change stream: leave out any readConcern but majority",
    73: "a change stream cannot watch this name: admin, local, config and system.* collections have none",
    166: "views and time series collections have no change stream: watch the collection beneath",
    263: "a change stream cannot run in a transaction: open it outside",
    334: "the server does not offer this authentication: change authMechanism in the URI",
    40324: "the server does not know a stage of the pipeline: check its spelling, and the server's version",
    40573: "change streams need a replica set: start mongod with --replSet and call rs.initiate() once",
    40602: "the pipeline holds a $changeStream of its own: leave it out",
}
MEND = "the server refuses the pipeline or an option: the exception behind this one says what to correct"
