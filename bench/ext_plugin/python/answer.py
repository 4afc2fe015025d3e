from apisix.runner.plugin.core import PluginBase


class Answer(PluginBase):
    def name(self):
        return "answer"

    def config(self, conf):
        return conf

    def filter(self, conf, request, response):
        response.set_header("X-Resp-A6-Runner", "Python")
        response.set_body("Hello")
        response.set_status_code(201)
