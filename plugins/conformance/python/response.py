import json

from apisix.runner.plugin.core import PluginBase


class ResponseFilter(PluginBase):
    def name(self):
        return "response"

    def config(self, conf):
        return json.loads(conf)

    def filter_response(self, conf, request, response):
        response.set_status_code(conf.get("status", 0))
        for name, value in conf.get("headers", {}).items():
            response.del_header(name) if value is None else response.set_header(name, value)
        response.set_body(conf.get("body", ""))
        if "append" in conf:
            response.set_body(response.get_body_bytes() + conf["append"].encode())
