"""The fields of the requests: names, types, ranges and the values the proxy passes on.

Policy, for every field: what is here works; OpenAI's other fields (`unsupported.py`) are refused by
name unless they ask for nothing; anything else is unknown and refused. Nothing is accepted and
ignored, with two exceptions that cannot change an answer: `user` and `safety_identifier` name the
end user. `null` means the same as leaving a field out, as in OpenAI's API.
"""
