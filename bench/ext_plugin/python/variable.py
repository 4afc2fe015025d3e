from apisix.runner.plugin.core import PluginBase


class Variable(PluginBase):
    def name(self):
        return "variable"

    def config(self, conf):
        return conf

    def filter(self, conf, request, response):
        request.get_var("route_id")
