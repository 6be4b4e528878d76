"""Let a served model call a function, and answer with what the function says.

The model's chat template must take tools (`calls_tools` in `/v1/models`), such as that of Qwen3-VL.

python examples/tool_calls.py http://127.0.0.1:9000/v1 Qwen/Qwen3-VL-2B-Instruct
"""

import json
import sys

from openai import OpenAI

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "count_in_stock",
            "description": "How many of a thing are in stock.",
            "parameters": {
                "type": "object",
                "properties": {"thing": {"type": "string", "enum": ["circle", "square", "star"]}},
                "required": ["thing"],
                "additionalProperties": False,
            },
        },
    }
]
STOCK = {"circle": 3, "square": 0, "star": 12}


def count_in_stock(thing: str) -> str:
    return f"{STOCK[thing]} of {thing}"


def main(base_url: str, model: str) -> None:
    client = OpenAI(base_url=base_url, api_key="None")
    messages: list = [{"role": "user", "content": "How many stars do we have?"}]
    choice = client.chat.completions.create(
        model=model, messages=messages, tools=TOOLS, tool_choice="required", max_tokens=256
    ).choices[0]
    messages.append(choice.message)
    for call in choice.message.tool_calls:
        result = count_in_stock(**json.loads(call.function.arguments))
        print(f"{call.function.name}({call.function.arguments}) -> {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    answer = client.chat.completions.create(
        model=model, messages=messages, tools=TOOLS, max_tokens=64
    )
    print(answer.choices[0].message.content)


if __name__ == "__main__":
    main(*sys.argv[1:])
