class Body {
  getName() {
    return 'body'
  }

  parseConf(conf) {
    return conf
  }

  async filter(conf, request) {
    await request.body()
  }
}

module.exports = Body
