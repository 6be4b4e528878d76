"""Chat templates that take tools: the forms of Qwen3-VL, Qwen3-VL-Thinking and Llama 3.2, in few words."""

from __future__ import annotations

_PARTS = (
    "{% macro parts(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% for part in content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
)
_HERMES = (
    _PARTS + "{% if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ parts(messages[0].content) }}\n\n{% endif %}"
    "Tools, one a line:\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "Call them so:\n<tool_call>\n"
    '{"name": <name>, "arguments": <object>}\n</tool_call><|im_end|>\n'
    "{% elif messages[0].role == 'system' %}"
    "<|im_start|>system\n{{ parts(messages[0].content) }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}{% if message.role == 'user' %}"
    "<|im_start|>user\n{{ parts(message.content) }}<|im_end|>\n"
    "{% elif message.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ parts(message.content) }}"
    "{% for call in message.tool_calls %}"
    "{% if message.content or not loop.first %}{{ '\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% elif message.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n' }}<tool_response>\n{{ parts(message.content) }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
)
HERMES = _HERMES.replace(
    "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}",
    "",
)
HERMES += "{% endif %}"
HERMES_THINKING = _HERMES + "<think>\n{% endif %}"
LLAMA = (
    "{% set first = messages[0].content | trim %}"
    "{% if tools %}<|im_start|>user\n"
    'Respond in the format {"name": function name, "parameters": arguments}.\n'
    "{% for tool in tools %}{{ tool | tojson(indent=4) }}\n\n{% endfor %}{{ first }}<|im_end|>\n"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}<|im_start|>"
    "{% if message.tool_calls %}assistant\n"
    '{"name": "{{ message.tool_calls[0].function.name }}", "parameters": '
    "{{ message.tool_calls[0].function.arguments | tojson }}}"
    "{% elif message.role == 'tool' %}ipython\n{{ message.content | tojson }}"
    "{% else %}{{ message.role }}\n{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
