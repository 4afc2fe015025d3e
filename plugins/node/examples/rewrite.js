// Changes what the upstream gets. Its configuration, where null deletes:
// {"path": "/x", "headers": {"X-Name": "value"}, "args": {"a": null}, "resp_headers": {"X-Seen": "1"}, "body": "…"}
class Rewrite {
  getName() {
    return 'rewrite'
  }

  parseConf(conf) {
    return JSON.parse(conf)
  }

  async filter(conf, request) {
    if (conf.path) request.path = conf.path
    change(request.headers, conf.headers)
    change(request.args, conf.args)
    change(request.respHeaders, conf.resp_headers)
    if (conf.body) request.setBody(conf.body)
  }
}

function change(fields, changes = {}) {
  for (const [name, value] of Object.entries(changes)) {
    if (value === null) fields.delete(name)
    else fields.set(name, value)
  }
}

module.exports = Rewrite
