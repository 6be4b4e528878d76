"""The version of this project, for `/version` and `/openapi.json`.

Written here because the proxy's image has the sources without the package's metadata.
"""

from typing import Final

VERSION: Final = "0.1.0"
