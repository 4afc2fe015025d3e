// Its configuration: {"header": "X-Checked", "value": "yes"}, both optional.
class {CLASS} {
  getName() {
    return '{NAME}' // what routes call it
  }

  parseConf(conf) {
    return JSON.parse(conf || '{}') // once for each route: the text that stands there
  }

  async filter(conf, request, response) {
    if (request.args.get('stop')) {
      console.log('stopped:', request.remoteAddr) // goes to the gateway's log
      response.status = 403 // answers, nothing reaches the upstream
      response.body = 'stopped by {NAME}\n'
      return
    }
    request.headers.set(conf.header ?? 'X-Checked', conf.value ?? 'yes') // goes on to the upstream
  }

  async filterResponse(conf, request, response) {
    response.headers.set('X-Plugin', '{NAME}')
  }
}

module.exports = {CLASS}
