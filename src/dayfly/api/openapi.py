"""What the framework cannot see of our routes, said in OpenAPI's words. Only descriptions; no behaviour."""

from dataclasses import dataclass

from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema


def _body(media_type: str, schema: Schema) -> RequestBody:
    return RequestBody(content={media_type: OpenAPIMediaType(schema=schema)}, required=True)


_DEPLOY = Schema(
    type=OpenAPIType.OBJECT,
    required=["config", "bundle"],
    properties={
        "config": Schema(type=OpenAPIType.STRING, description="JSON object of settings that win over dayfly.toml; may be {}."),
        "bundle": Schema(type=OpenAPIType.STRING, content_media_type="application/zip", description="The function's files."),
    },
)
_BYTES = Schema(type=OpenAPIType.STRING, content_media_type="application/octet-stream")


@dataclass
class DeployOperation(Operation):
    """PUT of a function: a multipart body that is streamed to disk."""

    def __post_init__(self) -> None:
        """The framework found no body, because the route reads it itself."""
        self.request_body = _body("multipart/form-data", _DEPLOY)


@dataclass
class RawBodyOperation(Operation):
    """PUT of a secret: the body is the value."""

    def __post_init__(self) -> None:
        """The framework found no body, because the route reads it itself."""
        self.request_body = _body("application/octet-stream", _BYTES)


@dataclass
class LinesOperation(Operation):
    """POST of a map's items: one JSON value a line."""

    def __post_init__(self) -> None:
        """The framework found no body, because the route reads it itself."""
        self.request_body = _body("application/x-ndjson", Schema(type=OpenAPIType.STRING, description="One JSON value a line."))
