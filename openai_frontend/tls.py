"""The server's side of TLS."""

from __future__ import annotations

import ssl
from typing import Any

from openai_frontend.settings import Settings, SettingsError


def tls_options(settings: Settings) -> dict[str, Any]:
    """Uvicorn's arguments for the certificate and key of the settings; none without them.

    Raises:
        SettingsError: they cannot be used.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return {}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without a password OpenSSL would ask the terminal for the one of an encrypted key.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else None
        reason = reason or getattr(error, "strerror", None) or str(error)
        raise SettingsError(
            f"the certificate {settings.tls_cert} and its key {settings.tls_key} cannot be used: "
            f"{reason}; both must be readable PEM, belong together, and the key have no password"
        ) from None
    return {"ssl_context_factory": lambda config, default: context}
