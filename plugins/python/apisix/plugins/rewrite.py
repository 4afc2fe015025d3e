from typing import Any

from apisix.runner.http.request import Request
from apisix.runner.http.response import Response
from apisix.runner.plugin.core import PluginBase


class Rewrite(PluginBase):
    """Changes what the upstream gets: a header, an argument and the path."""

    def name(self) -> str:
        return "rewrite"

    def config(self, conf: Any) -> Any:
        return conf

    def filter(self, conf: Any, request: Request, response: Response) -> None:
        print(conf)
        print(request.get_var("host"))
        print(request.get_body())

        request.set_header("X-Resp-A6-Runner", "Python")
        request.set_arg("a6_runner", "Python")
        request.set_uri("/a6/python/runner")
