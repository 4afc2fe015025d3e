import json

from apisix.runner.plugin.core import PluginBase


class Inspect(PluginBase):
    def name(self):
        return "inspect"

    def config(self, conf):
        return json.loads(conf)

    async def filter(self, conf, request, response):
        if conf.get("fail"):
            raise RuntimeError("this plugin was told to fail")
        seen = {
            "method": request.get_method(),
            "path": request.get_uri(),
            "args": request.get_args(),
            "headers": request.get_headers(),
            "remote_addr": request.get_remote_addr(),
            "route_id": request.get_var("route_id"),
            "body_length": len(request.get_body_bytes()),
        }
        response.set_body(json.dumps(seen))
