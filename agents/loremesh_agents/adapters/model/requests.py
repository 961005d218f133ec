"""What is asked of a language model and cannot be had is refused here, by name: engines take it in silence."""

from collections.abc import Mapping

from loremesh_agents.domain.answer import Resumption
from loremesh_agents.domain.errors import InvalidRequest, ModelChanged, UnsupportedByModel
from loremesh_agents.domain.structured_output import parsed_schema
from loremesh_agents.ports.language_model import Capability, GenerationRequest, Model, SamplingOptions


def check_request(request: GenerationRequest, model: Model, *, largest_seed: int) -> None:
    """Refuses what the model cannot do.

    Args:
        request: The request.
        model: The model that it is for.
        largest_seed: Of the engine.

    Raises:
        InvalidRequest: The JSON schema is none.
        UnsupportedByModel: The model cannot do it.
        ModelChanged: The generation to go on with was begun by another model.
    """
    options = request.options
    refused: Mapping[str, bool] = {
        "tools": bool(request.tools) and Capability.TOOLS not in model.capabilities,
        "a JSON schema": bool(options.json_schema) and Capability.JSON_SCHEMA not in model.capabilities,
        "log-probabilities": bool(options.top_logprobs) and Capability.LOGPROBS not in model.capabilities,
        f"seeds above {largest_seed}, as {options.seed}": options.seed is not None and options.seed > largest_seed,
        **_refused_resumptions(request, model),
    }
    for feature, wanted in refused.items():
        if wanted:
            raise UnsupportedByModel(model.name, feature)
    if options.json_schema:
        parsed_schema(options.json_schema, "options.json_schema")
    resume = request.resume
    if resume is not None and resume.model_fingerprint != model.fingerprint:
        raise ModelChanged(model.name, resume.model_fingerprint, model.fingerprint)


def _refused_resumptions(request: GenerationRequest, model: Model) -> dict[str, bool]:
    """Engines forget what was emitted: they take it for a part of the prompt, so what depends on it would be wrong."""
    resumed = request.resume is not None
    options = request.options
    return {
        "resuming a generation": resumed and Capability.RESUME not in model.capabilities,
        "resuming a generation with penalties": resumed and penalised(options),
        "resuming a generation that follows a JSON schema": resumed and bool(options.json_schema),
        "resuming a generation with tools": resumed and bool(request.tools),
    }


def token_limit(request: GenerationRequest, model: Model, prompt_tokens: int) -> int:
    """Most tokens of the answer, those that were emitted before included.

    Args:
        request: The request.
        model: The model that it is for.
        prompt_tokens: Tokens of the prompt alone.

    Raises:
        UnsupportedByModel: Prompt and answer are more than the context of the model.
    """
    room = model.context_tokens - prompt_tokens
    wanted = request.options.max_tokens
    if wanted > room or room <= 0:
        raise UnsupportedByModel(
            model.name,
            f"a prompt of {prompt_tokens} tokens with an answer of {wanted or 1}: its context is {model.context_tokens} tokens",
        )
    return wanted or min(request.default_max_tokens or room, room)


def resumptions(request: GenerationRequest) -> tuple[Resumption, ...]:
    """What the end of a generation says about where it went on."""
    if request.resume is None:
        return ()
    return (Resumption(len(request.resume.token_ids), exact=greedy(request.options)),)


def check_resumed_ids(request: GenerationRequest, size: int) -> tuple[int, ...]:
    """The ids that were emitted.

    Args:
        request: The request.
        size: Ids of the model's tokenizer.

    Raises:
        InvalidRequest: An id is not one of the model's, or there are none for a text.
    """
    if request.resume is None:
        return ()
    for place, token in enumerate(request.resume.token_ids):
        if not 0 <= token < size:
            raise InvalidRequest.of(f"resume.token_ids[{place}]", f"must be less than {size}, not {token}")
    if request.resume.text and not request.resume.token_ids:
        raise InvalidRequest.of("resume.token_ids", "must be the ids of the text; this model goes on from them")
    return request.resume.token_ids


def greedy(options: SamplingOptions) -> bool:
    """Whether the likeliest token is taken each time."""
    return not options.temperature


def penalised(options: SamplingOptions) -> bool:
    """Whether tokens that came count against those that come."""
    return bool(options.frequency_penalty or options.presence_penalty)
