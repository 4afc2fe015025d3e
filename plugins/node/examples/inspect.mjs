// Answers with what it sees. With {"fail": true} it fails, to show what becomes of that.
export default class Inspect {
  getName() {
    return 'inspect'
  }

  parseConf(conf) {
    return JSON.parse(conf)
  }

  async filter(conf, request, response) {
    if (conf.fail) throw new Error('this plugin was told to fail')
    const [routeId, body] = await Promise.all([request.var('route_id'), request.bodyBytes()])
    response.body = JSON.stringify({
      method: request.method,
      path: request.path,
      args: Object.fromEntries(request.args),
      headers: Object.fromEntries(request.headers),
      remote_addr: request.remoteAddr,
      route_id: routeId ?? '',
      body_length: body.length,
    })
  }
}
