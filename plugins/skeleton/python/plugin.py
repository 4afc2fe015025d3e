import json
from typing import Any

from apisix.runner.http.request import PostRequest, Request
from apisix.runner.http.response import PostResponse, Response
from apisix.runner.plugin.core import PluginBase


class {CLASS}(PluginBase):
    """Its configuration: {"header": "X-Checked", "value": "yes"}, both optional."""

    def name(self) -> str:
        return "{NAME}"  # what routes call it

    def config(self, conf: Any) -> Any:
        return json.loads(conf or "{}")  # once for each route: the text that stands there

    def filter(self, conf: Any, request: Request, response: Response) -> None:
        if request.get_arg("stop"):
            print("stopped:", request.get_remote_addr())  # goes to the gateway's log
            response.set_status_code(403)  # answers, nothing reaches the upstream
            response.set_body("stopped by {NAME}\n")
            return
        request.set_header(conf.get("header", "X-Checked"), conf.get("value", "yes"))  # goes on to the upstream

    def filter_response(self, conf: Any, request: PostRequest, response: PostResponse) -> None:
        response.set_header("X-Plugin", "{NAME}")
