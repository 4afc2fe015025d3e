import json
from typing import Any

from apisix.runner.http.request import PostRequest
from apisix.runner.http.response import PostResponse
from apisix.runner.plugin.core import PluginBase


class ResponseFilter(PluginBase):
    """Changes what the client gets. Its configuration, all optional:
    {"status": 200, "headers": {"X-Name": "value", "X-Gone": null}, "body": "…", "append": "…"}
    """

    def name(self) -> str:
        return "response"

    def config(self, conf: Any) -> Any:
        return json.loads(conf or "{}")

    def filter_response(self, conf: Any, request: PostRequest, response: PostResponse) -> None:
        response.set_status_code(conf.get("status", 0))
        for name, value in conf.get("headers", {}).items():
            if value is None:
                response.del_header(name)
            else:
                response.set_header(name, value)
        if "body" in conf:
            response.set_body(conf["body"])
        if "append" in conf:
            # only a plugin that asks for the body makes the gateway hold it back
            response.set_body(response.get_body_bytes() + conf["append"].encode())
