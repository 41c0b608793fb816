"""The control API as one ASGI application over a Control: routes, errors, OpenAPI. The gateway forwards to it unchanged."""

from litestar import Litestar
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from dayfly import __version__
from dayfly.api import calls, functions, limits, maps, numbers, platform, schedules
from dayfly.api.errors import failed, framework_refused, refused
from dayfly.control.plane import Control
from dayfly.core.model.errors import Refusal

BODY_BYTES_MAX = 1024 * 1024  # of JSON orders; bundles and secrets have bounds of their own


def create_app(control: Control) -> Litestar:
    """The application. It keeps no state of its own, so it may be made again at any time."""
    return Litestar(
        route_handlers=[calls.ROUTES, functions.ROUTES, limits.ROUTES, maps.ROUTES, platform.ROUTES, *numbers.ROUTES, schedules.ROUTES],
        state=State({"control": control}, deep_copy=False),
        exception_handlers={Refusal: refused, HTTPException: framework_refused, Exception: failed},
        request_max_body_size=BODY_BYTES_MAX,
        logging_config=None,
        openapi_config=OpenAPIConfig(
            title="Dayfly",
            version=__version__,
            path="/",
            render_plugins=[JsonRenderPlugin(path="/openapi.json")],
            components=Components(security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}),
            security=[{"token": []}],
            use_handler_docstrings=True,
        ),
        debug=False,
    )
