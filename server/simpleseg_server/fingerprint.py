"""Names what answered, as OpenAI's ``system_fingerprint`` does."""

from simpleseg import __version__
from simpleseg_polygon.grammar import fingerprint
from simpleseg_server.engines.base import Capabilities


def system_fingerprint(capabilities: Capabilities) -> str:
    """What decides how a question is answered, apart from the weights, which the model names.

    Changes with the server's version, the engine and the grammars.
    """
    return f"simpleseg-{__version__}-{capabilities.engine}-{fingerprint()}"
