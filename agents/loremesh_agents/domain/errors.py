"""Every error that a caller of an agent can see.

    LoremeshError
    ├── InvalidRequest                       INVALID_REQUEST
    ├── NotFound
    │   ├── CollectionNotFound               COLLECTION_NOT_FOUND
    │   ├── DocumentNotFound                 DOCUMENT_NOT_FOUND
    │   ├── PassageNotFound                  PASSAGE_NOT_FOUND
    │   ├── EntityNotFound                   ENTITY_NOT_FOUND
    │   └── ModelNotFound                    MODEL_NOT_FOUND
    ├── PreconditionFailed
    │   ├── RevisionNotReached               REVISION_NOT_REACHED
    │   ├── CollectionRecreated              COLLECTION_RECREATED
    │   ├── CollectionOptionsMismatch        COLLECTION_OPTIONS_MISMATCH
    │   ├── EmbeddingMismatch                EMBEDDING_MISMATCH
    │   ├── ReembeddingRefused               REEMBEDDING_REFUSED
    │   ├── UnsupportedByModel               UNSUPPORTED_BY_MODEL
    │   ├── ModelChanged                     MODEL_CHANGED
    │   ├── StaleSourceVersion               STALE_SOURCE_VERSION
    │   ├── UnsupportedMediaType             UNSUPPORTED_MEDIA_TYPE
    │   ├── DocumentUnreadable               DOCUMENT_UNREADABLE
    │   └── DocumentTooLarge                 DOCUMENT_TOO_LARGE
    ├── Conflict
    │   └── WriteConflict                    WRITE_CONFLICT
    ├── Exhausted
    │   ├── Overloaded                       OVERLOADED
    │   ├── ReaderSetsExhausted              READER_SETS_EXHAUSTED
    │   └── StorageFull                      STORAGE_FULL
    ├── Unavailable
    │   ├── BackendUnavailable               BACKEND_UNAVAILABLE
    │   ├── PeerUnavailable                  PEER_UNAVAILABLE
    │   └── Draining                         DRAINING
    ├── TimedOut
    │   ├── BudgetExhausted                  BUDGET_EXHAUSTED
    │   └── StreamIdle                       STREAM_IDLE
    ├── Unauthenticated
    │   └── PrincipalNotTrusted              PRINCIPAL_NOT_TRUSTED
    ├── NotImplementedYet                    NOT_IMPLEMENTED
    └── InternalError                        INTERNAL

Each leaf fixes its reason (the names of `loremesh.v1.ErrorReason` without the prefix) and whether a retry of the same call
may help; each branch stands for one status code, which only `runtime` knows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self


class ConfigurationError(Exception):
    """Settings or files that an agent cannot start with. The message names the setting, its value and the mend."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One broken rule of a request.

    Attributes:
        field: Path of the field, as in `retrieval.k` or `collections[0]`.
        description: The rule and the value that broke it, as a sentence.
        rule: Id of the rule, as in `string.max_len`.
    """

    field: str
    description: str
    rule: str = ""


class LoremeshError(Exception):
    """An error with a reason that programs can rely on.

    Attributes:
        message: A sentence for developers. It may change; the reason does not.
        metadata: Every variable of the message by its lowerCamelCase name.
        retry_after: Seconds after which a retry may succeed; None where a retry does not help.
        violations: The broken rules of an invalid request.
    """

    reason: ClassVar[str] = ""
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        violations: Sequence[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.violations = tuple(violations)

    @classmethod
    def restore(
        cls,
        message: str,
        *,
        metadata: Mapping[str, str],
        retry_after: float | None = None,
        violations: Sequence[FieldViolation] = (),
    ) -> Self:
        """The error as another process raised it, from what came over the wire."""
        error = cls.__new__(cls)
        LoremeshError.__init__(error, message, metadata=metadata, retry_after=retry_after, violations=violations)
        return error


class InvalidRequest(LoremeshError):
    """The request breaks rules of the contract."""

    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        named = "; ".join(f"{violation.field}: {violation.description}" for violation in violations[:3])
        more = f"; and {len(violations) - 3} more" if len(violations) > 3 else ""
        super().__init__(f"The request is invalid: {named}{more}.", violations=violations)

    @classmethod
    def of(cls, field: str, description: str, rule: str = "") -> Self:
        """The error of a single broken rule."""
        return cls((FieldViolation(field, description, rule),))


class NotFound(LoremeshError):
    """Something that the request names does not exist, or the caller may not know that it does.

    Attributes:
        resource_type: What was looked for, as in `collection`.
        name_key: Which entry of the metadata holds its name.
    """

    resource_type: ClassVar[str] = ""
    name_key: ClassVar[str] = ""

    @property
    def resource_name(self) -> str:
        """The name that was not found."""
        return self.metadata.get(self.name_key, "")


class CollectionNotFound(NotFound):
    """No collection of that name."""

    reason = "COLLECTION_NOT_FOUND"
    resource_type = "collection"
    name_key = "collection"

    def __init__(self, collection: str) -> None:
        super().__init__(f"There is no collection {collection!r}.", metadata={"collection": collection})


class DocumentNotFound(NotFound):
    """No document of that id that the caller may read."""

    reason = "DOCUMENT_NOT_FOUND"
    resource_type = "document"
    name_key = "documentId"

    def __init__(self, collection: str, document_id: str) -> None:
        super().__init__(
            f"There is no document {document_id!r} in collection {collection!r}.",
            metadata={"collection": collection, "documentId": document_id},
        )


class PassageNotFound(NotFound):
    """No passage of that id that the caller may read."""

    reason = "PASSAGE_NOT_FOUND"
    resource_type = "passage"
    name_key = "passageId"

    def __init__(self, collection: str, passage_id: str) -> None:
        super().__init__(
            f"There is no passage {passage_id!r} in collection {collection!r}.",
            metadata={"collection": collection, "passageId": passage_id},
        )


class EntityNotFound(NotFound):
    """No entity of that name in the collections asked."""

    reason = "ENTITY_NOT_FOUND"
    resource_type = "entity"
    name_key = "entity"

    def __init__(self, entity: str) -> None:
        super().__init__(f"No document mentions the entity {entity!r}.", metadata={"entity": entity})


class ModelNotFound(NotFound):
    """The generator serves no model of that name."""

    reason = "MODEL_NOT_FOUND"
    resource_type = "model"
    name_key = "model"

    def __init__(self, model: str, served: Sequence[str]) -> None:
        super().__init__(
            f"There is no model {model!r}; this generator serves {', '.join(served)}.",
            metadata={"model": model, "served": ",".join(served)},
        )


class PreconditionFailed(LoremeshError):
    """The request is valid, but the state of the system does not allow it.

    Attributes:
        subject: What has the wrong state, as in `collection docs`.
    """

    @property
    def subject(self) -> str:
        """What has the wrong state: the first entry of the metadata."""
        return next((f"{key} {value}" for key, value in self.metadata.items()), "")


class RevisionNotReached(PreconditionFailed):
    """The collection did not reach the asked revision in time."""

    reason = "REVISION_NOT_REACHED"
    retryable = True

    def __init__(self, collection: str, requested: int, current: int) -> None:
        super().__init__(
            f"Collection {collection!r} is at revision {current} and did not reach {requested} in time.",
            metadata={
                "collection": collection,
                "requestedRevision": str(requested),
                "currentRevision": str(current),
            },
            retry_after=0.1,
        )


class CollectionRecreated(PreconditionFailed):
    """The collection was deleted and created again since the caller saw the revision that it asks for."""

    reason = "COLLECTION_RECREATED"

    def __init__(self, collection: str, requested_uid: str, current_uid: str) -> None:
        super().__init__(
            f"Collection {collection!r} was created anew: its uid is {current_uid}, not {requested_uid}.",
            metadata={"collection": collection, "requestedUid": requested_uid, "currentUid": current_uid},
        )


class CollectionOptionsMismatch(PreconditionFailed):
    """The collection was created with another option than the one asked for."""

    reason = "COLLECTION_OPTIONS_MISMATCH"

    def __init__(self, collection: str, option: str, collection_value: str, requested_value: str) -> None:
        super().__init__(
            f"Collection {collection!r} was created with {option} {collection_value}, and {requested_value} is asked for;"
            " leave the option out, or ingest into another collection.",
            metadata={
                "collection": collection,
                "option": option,
                "collectionValue": collection_value,
                "requestedValue": requested_value,
            },
        )

    @classmethod
    def unsupported(cls, collection: str, option: str, backend: str) -> Self:
        """The error of an option that the store cannot give to any collection."""
        return cls.restore(
            f"Collection {collection!r} cannot have {option}: the {backend} store does not keep what it needs; leave the option out,"
            " or configure another graph store.",
            metadata={
                "collection": collection,
                "option": option,
                "collectionValue": "false",
                "requestedValue": "true",
                "backend": backend,
            },
        )


class EmbeddingMismatch(PreconditionFailed):
    """The collection's vectors come from another embedding model than the configured one."""

    reason = "EMBEDDING_MISMATCH"

    def __init__(self, collection: str, collection_model: str, configured_model: str) -> None:
        super().__init__(
            f"Collection {collection!r} was embedded by {collection_model!r}, but {configured_model!r} is configured;"
            " configure the first, embed the collection anew with 'loremesh collections NAME --reembed', or ingest into another one.",
            metadata={
                "collection": collection,
                "collectionModel": collection_model,
                "configuredModel": configured_model,
            },
        )


class ReembeddingRefused(PreconditionFailed):
    """A collection cannot be embedded with another model, or not now."""

    reason = "REEMBEDDING_REFUSED"

    def __init__(self, collection: str, cause: str) -> None:
        super().__init__(
            f"Collection {collection!r} is not embedded with another model: {cause}.",
            metadata={"collection": collection, "cause": cause},
        )


class UnsupportedByModel(PreconditionFailed):
    """The model cannot do what the request asks of it."""

    reason = "UNSUPPORTED_BY_MODEL"

    def __init__(self, model: str, feature: str) -> None:
        super().__init__(f"Model {model!r} does not support {feature}.", metadata={"model": model, "feature": feature})


class ModelChanged(PreconditionFailed):
    """A generation cannot be resumed because the model is not the one that began it."""

    reason = "MODEL_CHANGED"

    def __init__(self, model: str, expected: str, current: str) -> None:
        super().__init__(
            f"Model {model!r} has fingerprint {current}, but the generation to resume began with {expected}.",
            metadata={"model": model, "expectedFingerprint": expected, "currentFingerprint": current},
        )


class StaleSourceVersion(PreconditionFailed):
    """A newer version of the document is already there; the older one is not applied."""

    reason = "STALE_SOURCE_VERSION"

    def __init__(self, document_id: str, source_version: int, current: int) -> None:
        super().__init__(
            f"Document {document_id!r} is at source version {current}; version {source_version} is older.",
            metadata={
                "documentId": document_id,
                "sourceVersion": str(source_version),
                "currentSourceVersion": str(current),
            },
        )


class UnsupportedMediaType(PreconditionFailed):
    """No parser for the document's media type."""

    reason = "UNSUPPORTED_MEDIA_TYPE"

    def __init__(self, document_id: str, media_type: str, supported: Sequence[str]) -> None:
        super().__init__(
            f"Document {document_id!r} has media type {media_type!r}; supported are {', '.join(supported)}.",
            metadata={"documentId": document_id, "mediaType": media_type},
        )


class DocumentUnreadable(PreconditionFailed):
    """The document's bytes are damaged, or hold no text."""

    reason = "DOCUMENT_UNREADABLE"

    def __init__(self, document_id: str, cause: str) -> None:
        super().__init__(
            f"Document {document_id!r} cannot be read: {cause}.", metadata={"documentId": document_id, "cause": cause}
        )


class DocumentTooLarge(PreconditionFailed):
    """The document is larger than the knowledge agent accepts."""

    reason = "DOCUMENT_TOO_LARGE"

    def __init__(self, document_id: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"Document {document_id!r} has {size_bytes} bytes; at most {limit_bytes} are accepted.",
            metadata={"documentId": document_id, "sizeBytes": str(size_bytes), "limitBytes": str(limit_bytes)},
        )


class Conflict(LoremeshError):
    """Another writer was faster; the same call can be made again."""

    retryable = True


class WriteConflict(Conflict):
    """The store is being written by another process."""

    reason = "WRITE_CONFLICT"

    def __init__(self, backend: str) -> None:
        super().__init__(
            f"The {backend} store is being written by another process.",
            metadata={"backend": backend},
            retry_after=0.5,
        )


class Exhausted(LoremeshError):
    """A limit is reached.

    Attributes:
        subject: Whose limit, as in `agent retriever`.
    """

    @property
    def subject(self) -> str:
        """Whose limit it is: the first entry of the metadata."""
        return next((f"{key} {value}" for key, value in self.metadata.items()), "")


class Overloaded(Exhausted):
    """The agent has as much in flight as it may have, and cannot begin the call in time."""

    reason = "OVERLOADED"
    retryable = True

    def __init__(self, agent: str, limit: int, retry_after: float) -> None:
        super().__init__(
            f"The {agent} agent has {limit} calls in flight, its limit.",
            metadata={"agent": agent, "limit": str(limit)},
            retry_after=retry_after,
        )

    @classmethod
    def queueing(cls, agent: str, limit: int, retry_after: float) -> Self:
        """The error of an agent that queues by tokens, and has more to do than the call can wait for."""
        return cls.restore(
            f"The {agent} agent may have {limit} tokens in flight, and cannot begin this call in time.",
            metadata={"agent": agent, "limit": str(limit)},
            retry_after=retry_after,
        )


class ReaderSetsExhausted(Exhausted):
    """A collection with statistics per set of readers has as many such sets as it may have."""

    reason = "READER_SETS_EXHAUSTED"

    def __init__(self, collection: str, document_id: str, limit: int) -> None:
        super().__init__(
            f"Document {document_id!r} would bring another set of readers into collection {collection!r}, which keeps"
            f" statistics per set of readers and has {limit} such sets, its limit.",
            metadata={"collection": collection, "documentId": document_id, "limit": str(limit)},
        )


class StorageFull(Exhausted):
    """The disk or the store is full; reads go on."""

    reason = "STORAGE_FULL"

    def __init__(self, backend: str) -> None:
        super().__init__(f"The {backend} store is full.", metadata={"backend": backend})


class Unavailable(LoremeshError):
    """Something needed for the answer cannot be reached now."""

    retryable = True


class BackendUnavailable(Unavailable):
    """A database or engine does not answer."""

    reason = "BACKEND_UNAVAILABLE"

    def __init__(self, backend: str, retry_after: float = 1.0) -> None:
        super().__init__(
            f"The {backend} backend does not answer.", metadata={"backend": backend}, retry_after=retry_after
        )


class PeerUnavailable(Unavailable):
    """Another agent does not answer."""

    reason = "PEER_UNAVAILABLE"

    def __init__(self, peer: str, retry_after: float = 1.0) -> None:
        super().__init__(f"The {peer} agent does not answer.", metadata={"peer": peer}, retry_after=retry_after)


class Draining(Unavailable):
    """The agent is shutting down and takes no new calls; another replica will."""

    reason = "DRAINING"

    def __init__(self, agent: str) -> None:
        super().__init__(f"The {agent} agent is shutting down.", metadata={"agent": agent}, retry_after=0.1)


class TimedOut(LoremeshError):
    """Time ran out."""


class BudgetExhausted(TimedOut):
    """The caller's deadline leaves no time for the next stage."""

    reason = "BUDGET_EXHAUSTED"

    def __init__(self, agent: str, stage: str) -> None:
        super().__init__(
            f"The deadline passed in the {agent} agent during {stage}.", metadata={"agent": agent, "stage": stage}
        )


class StreamIdle(TimedOut):
    """No message came on a stream for longer than its idle timeout."""

    reason = "STREAM_IDLE"

    def __init__(self, agent: str, idle_seconds: float) -> None:
        super().__init__(
            f"No message came for {idle_seconds:g} s on a stream of the {agent} agent.",
            metadata={"agent": agent, "idleSeconds": f"{idle_seconds:g}"},
        )


class Unauthenticated(LoremeshError):
    """The caller has not proved who it is."""


class PrincipalNotTrusted(Unauthenticated):
    """A principal came from a peer that is not authenticated or may not assert one."""

    reason = "PRINCIPAL_NOT_TRUSTED"

    def __init__(self, agent: str) -> None:
        super().__init__(
            f"The {agent} agent takes a principal only from an authenticated peer.", metadata={"agent": agent}
        )


class NotImplementedYet(LoremeshError):
    """The contract has it, this build does not."""

    reason = "NOT_IMPLEMENTED"

    def __init__(self, feature: str) -> None:
        super().__init__(f"This build does not serve {feature} yet.", metadata={"feature": feature})


class InternalError(LoremeshError):
    """A defect of ours. The cause is in the log under the incident id, never in the message."""

    reason = "INTERNAL"

    def __init__(self, incident_id: str) -> None:
        super().__init__(f"Internal error; incident {incident_id}.", metadata={"incidentId": incident_id})


def _leaves(cls: type[LoremeshError]) -> list[type[LoremeshError]]:
    own = [cls] if cls.reason else []
    return own + [leaf for child in cls.__subclasses__() for leaf in _leaves(child)]


ERRORS_BY_REASON: Mapping[str, type[LoremeshError]] = {leaf.reason: leaf for leaf in _leaves(LoremeshError)}
"""The class of each reason."""
