"""The official openai client against a running server: python openai_client.py URL CHECK.

Each check asserts what a user of that client relies on. The server has a tiny model of random weights, so answers are
checked by their form, and against each other.
"""

import asyncio
import sys

import openai
from openai import AsyncOpenAI, OpenAI

BASE, ADAPTER, OTHER = "tiny", "rslora", "all7"
RAIN = [{"role": "user", "content": "Tell me of rain"}]
GREEDY = {"temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}


def ask(client, model=ADAPTER, **more):
    return client.chat.completions.create(model=model, messages=RAIN, **{**GREEDY, **more})


def whole(client):
    answer = ask(client)
    assert answer.object == "chat.completion" and answer.model == ADAPTER
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.message.refusal is None and choice.logprobs is None and choice.finish_reason == "length"
    assert answer.system_fingerprint.startswith("fp_")
    assert answer._request_id.startswith("req-")
    assert ask(client).choices[0].message.content == choice.message.content, "greedy answers are repeatable"
    assert ask(client, model=BASE).choices[0].message.content != choice.message.content
    text = client.completions.create(model=ADAPTER, prompt="one, two,", **GREEDY)
    assert text.object == "text_completion" and text.choices[0].text
    raw = client.chat.completions.with_raw_response.create(
        model=ADAPTER, messages=RAIN, max_tokens=4, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1" and "adapter=" in raw.headers["x-tunegate-version"]


def streamed(client):
    expected = ask(client).choices[0].message.content
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in ask(client, stream=True))
    # The client's own gathering of a stream takes an answer that ran out of tokens for an error.
    word = expected[3:6]
    with client.chat.completions.stream(model=ADAPTER, messages=RAIN, stop=word, **GREEDY) as stream:
        stream.until_done()
        final = stream.get_final_completion().choices[0]
        assert final.message.content == expected[: expected.index(word)] and final.finish_reason == "stop"
    texts = client.completions.create(model=ADAPTER, prompt="one, two,", stream=True, **GREEDY)
    whole_text = client.completions.create(model=ADAPTER, prompt="one, two,", **GREEDY).choices[0].text
    assert "".join(c.choices[0].text for c in texts) == whole_text


def many(client):
    answer = ask(client, n=3, temperature=1.5, seed=11)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert answer.usage.completion_tokens == 36
    parts = {}
    for chunk in ask(client, n=3, temperature=1.5, seed=11, stream=True):
        for choice in chunk.choices:
            parts[choice.index] = parts.get(choice.index, "") + (choice.delta.content or "")
    assert [parts[index] for index in range(3)] == texts, "streamed choices are the same"


def stop(client):
    text = ask(client).choices[0].message.content
    word = text[3:6]
    for stop_at in (word, ["never this", word]):
        answer = ask(client, stop=stop_at)
        assert answer.choices[0].message.content == text[: text.index(word)]
        assert answer.choices[0].finish_reason == "stop"


def logprobs(client):
    choice = ask(client, logprobs=True, top_logprobs=2).choices[0]
    assert len(choice.logprobs.content) == 12
    for token in choice.logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 2 and isinstance(token.bytes, list)
    joined = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
    assert joined.decode(errors="replace") == choice.message.content
    lists = client.completions.create(
        model=ADAPTER, prompt="one, two,", echo=True, logprobs=2, **GREEDY
    ).choices[0].logprobs
    assert lists.token_logprobs[0] is None and lists.text_offset[0] == 0
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(lists.text_offset)


def usage(client):
    answer = ask(client)
    spent = answer.usage
    assert spent.total_tokens == spent.prompt_tokens + spent.completion_tokens and spent.completion_tokens == 12
    assert spent.prompt_tokens_details.cached_tokens >= 0
    assert spent.completion_tokens_details.reasoning_tokens == 0
    longer = client.chat.completions.create(model=ADAPTER, messages=RAIN + RAIN, **GREEDY)
    assert longer.usage.prompt_tokens > spent.prompt_tokens


def errors(client):
    def fails(kind, status, code, param, call):
        try:
            call()
        except kind as error:
            assert (error.status_code, error.code, error.param) == (status, code, param), error
            assert error.request_id
        else:
            raise AssertionError(f"no {kind.__name__}")

    bad, missing = openai.BadRequestError, openai.NotFoundError
    fails(missing, 404, "model_not_found", "model", lambda: ask(client, model="rslara"))
    fails(bad, 400, "invalid_value", "temperature", lambda: ask(client, temperature=3))
    fails(bad, 400, "unsupported_parameter", "tools", lambda: ask(
        client, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]))
    fails(bad, 400, "unsupported_parameter", "response_format", lambda: ask(
        client, response_format={"type": "json_object"}))
    fails(bad, 400, "context_length_exceeded", "messages", lambda: ask(client, max_tokens=100_000))
    fails(bad, 400, "invalid_value", "n", lambda: ask(client, stream=True, n=1000))
    fails(missing, 404, "route_not_found", None, lambda: client.embeddings.create(model=BASE, input="x"))
    fails(missing, 404, "route_not_found", None, lambda: client.responses.create(model=BASE, input="x"))


def keys(client):
    try:
        client.with_options(api_key="wrong").models.list()
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key"
    else:
        raise AssertionError("a wrong key was let in")
    assert client.models.list().data


def cancel(client):
    stream = ask(client, stream=True, max_tokens=450)
    for _, chunk in zip(range(4), stream):
        assert chunk.choices
    stream.close()
    assert ask(client).choices[0].message.content, "others are answered"


def models(client):
    listed = list(client.models.list())
    assert listed[0].id == BASE and {ADAPTER, OTHER} <= {model.id for model in listed}
    assert listed[0].parent is None and listed[1].parent == BASE
    assert client.models.retrieve(ADAPTER).id == ADAPTER
    assert client.models.retrieve("team/sql").id == "team/sql"


def stored(client):
    answer = ask(client, store=True, metadata={"tone": "dry"})
    ask(client)
    assert [known.id for known in client.chat.completions.list(metadata={"tone": "dry"})] == [answer.id]
    found = client.chat.completions.retrieve(answer.id)
    assert found.choices[0].message.content == answer.choices[0].message.content
    messages = list(client.chat.completions.messages.list(answer.id))
    assert [message.content for message in messages] == ["Tell me of rain"]
    assert client.chat.completions.update(answer.id, metadata={"tone": "wet"}).metadata == {"tone": "wet"}
    assert client.chat.completions.delete(answer.id).deleted
    assert list(client.chat.completions.list()) == []


def feedback(client):
    answer = ask(client, store=True)
    given = client.post("/feedback", cast_to=object, body={
        "id": "mine-1", "completion_id": answer.id, "choice_index": 0, "thumbs": "down", "comment": "dull",
        "correction": {"role": "assistant", "content": "It rained all day."}})
    assert given["standing"] == "joined" and given["feedback_id"].startswith("fb-"), given
    judged = client.chat.completions.retrieve(answer.id).feedback
    assert [(said["value"], said["correction"]) for said in judged] == [(False, "It rained all day.")]
    for chunk in ask(client, stream=True, max_tokens=100):
        early = client.post("/feedback", cast_to=object, body=[
            {"inference_id": chunk.id, "metric_name": "score", "value": 0.5},
            {"inference_id": chunk.id, "metric_name": "comment", "value": "so far so good"}])
        break
    assert {said["standing"] for said in early["data"]} <= {"in_flight", "joined"}, early
    try:
        client.post("/feedback", cast_to=object, body={"id": "mine-1", "completion_id": answer.id, "thumbs": "up"})
    except openai.ConflictError as error:
        assert (error.code, error.param) == ("feedback_conflict", "id")
    else:
        raise AssertionError("other words under a known id were taken")
    assert client.delete("/feedback/mine-1", cast_to=object)["retracted"]
    assert client.get("/feedback/mine-1", cast_to=object)["retracted"] > 0


def concurrent(client):
    names = [BASE, ADAPTER, OTHER, "plain-qv"] * 3
    alone = {name: ask(client, model=name).choices[0].message.content for name in names}

    async def all_at_once():
        async with AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, max_retries=0) as other:
            answers = await asyncio.gather(*(ask(other, model=name) for name in names))
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(all_at_once()) == [alone[name] for name in names]
    assert len(set(alone.values())) == 4, alone


CHECKS = [whole, streamed, many, stop, logprobs, usage, errors, keys, cancel, models, stored, feedback, concurrent]

if __name__ == "__main__":
    url, name = sys.argv[1:]
    check = next(check for check in CHECKS if check.__name__ == name)
    check(OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0, timeout=120))
