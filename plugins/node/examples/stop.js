// Answers every request itself. Its configuration: {"status": 401, "headers": {"X-Name": "value"}, "body": "…"}
class Stop {
  getName() {
    return 'stop'
  }

  parseConf(conf) {
    return JSON.parse(conf)
  }

  async filter(conf, request, response) {
    response.status = conf.status
    response.headers = new Map(Object.entries(conf.headers ?? {}))
    response.body = conf.body
  }
}

module.exports = Stop
