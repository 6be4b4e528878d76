"""What the answers look like, for `/openapi.json`.

Nothing is built from these models, because that would cost more than the rest of the proxy (see
`openai_answers`); tests hold every answer against them.
"""
