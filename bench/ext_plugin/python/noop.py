from apisix.runner.plugin.core import PluginBase


class Noop(PluginBase):
    def name(self):
        return "noop"

    def config(self, conf):
        return conf

    def filter(self, conf, request, response):
        pass
