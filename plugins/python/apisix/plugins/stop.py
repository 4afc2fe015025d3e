from typing import Any

from apisix.runner.http.request import Request
from apisix.runner.http.response import Response
from apisix.runner.plugin.core import PluginBase


class Stop(PluginBase):
    """Answers every request itself, so that nothing reaches the upstream."""

    def name(self) -> str:
        return "stop"

    def config(self, conf: Any) -> Any:
        return conf

    def filter(self, conf: Any, request: Request, response: Response) -> None:
        # what a plugin prints stands in the gateway's log
        print(conf)
        print(request.get_var("host"))
        print(request.get_body())

        response.set_header("X-Resp-A6-Runner", "Python")
        response.set_body("Hello, Python Runner of APISIX")
        response.set_status_code(201)
