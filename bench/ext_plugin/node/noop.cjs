class Noop {
  getName() {
    return 'noop'
  }

  parseConf(conf) {
    return conf
  }

  async filter() {}
}

module.exports = Noop
