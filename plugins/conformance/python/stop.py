import json

from apisix.runner.plugin.core import PluginBase


class Stop(PluginBase):
    def name(self):
        return "stop"

    def config(self, conf):
        return json.loads(conf)

    def filter(self, conf, request, response):
        response.set_status_code(conf.get("status", 0))
        for name, value in conf.get("headers", {}).items():
            response.set_header(name, value)
        response.set_body(conf.get("body", ""))
