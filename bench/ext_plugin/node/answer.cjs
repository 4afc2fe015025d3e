class Answer {
  getName() {
    return 'answer'
  }

  parseConf(conf) {
    return conf
  }

  async filter(conf, request, response) {
    response.status = 201
    response.headers = new Map([['X-Resp-A6-Runner', 'JavaScript']])
    response.body = 'Hello'
  }
}

module.exports = Answer
