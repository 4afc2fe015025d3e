import json

from apisix.runner.plugin.core import PluginBase


class Rewrite(PluginBase):
    def name(self):
        return "rewrite"

    def config(self, conf):
        return json.loads(conf)

    def filter(self, conf, request, response):
        request.set_uri(conf.get("path", ""))
        for name, value in conf.get("headers", {}).items():
            request.del_header(name) if value is None else request.set_header(name, value)
        for name, value in conf.get("args", {}).items():
            request.del_arg(name) if value is None else request.set_arg(name, value)
        for name, value in conf.get("resp_headers", {}).items():
            request.set_resp_header(name, value)
        request.set_body(conf.get("body", ""))
