// Changes what the client gets. Its configuration, where null deletes:
// {"status": 200, "headers": {"X-Name": "value"}, "body": "…", "append": "…"}
class ResponseFilter {
  getName() {
    return 'response'
  }

  parseConf(conf) {
    return JSON.parse(conf)
  }

  async filterResponse(conf, request, response) {
    if (conf.status) response.status = conf.status
    for (const [name, value] of Object.entries(conf.headers ?? {})) {
      if (value === null) response.headers.delete(name)
      else response.headers.set(name, value)
    }
    if (conf.body) response.setBody(conf.body)
    // only a plugin that asks for the body makes the gateway hold it back
    if (conf.append) response.setBody(Buffer.concat([await response.bodyBytes(), Buffer.from(conf.append)]))
  }
}

module.exports = ResponseFilter
