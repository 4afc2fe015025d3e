/** The program: what becomes of plugins that misbehave, and of its processes. */

import assert from 'node:assert/strict'
import { ChildProcess, spawn, spawnSync } from 'node:child_process'
import * as fs from 'node:fs'
import * as net from 'node:net'
import * as os from 'node:os'
import * as path from 'node:path'
import { test } from 'node:test'

import * as wire from '../src/wire'

const PROGRAM = path.join(__dirname, '../../bin/runner.js')
const PATIENCE = 30_000

class Runner {
  readonly directory = fs.mkdtempSync(path.join(os.tmpdir(), 'runner-'))
  readonly socket = path.join(this.directory, 'sock')
  readonly child: ChildProcess
  output = ''

  constructor(source: string, ...options: string[]) {
    const plugin = path.join(this.directory, 'plugin.js')
    fs.writeFileSync(plugin, source)
    this.child = spawn(process.execPath, [PROGRAM, ...options, plugin], {
      env: { ...process.env, APISIX_LISTEN_ADDRESS: `unix:${this.socket}` },
    })
    for (const stream of [this.child.stdout, this.child.stderr]) stream?.on('data', (data) => (this.output += data))
  }

  async until(what: string, condition: () => boolean): Promise<void> {
    const end = Date.now() + PATIENCE
    while (!condition()) {
      assert.ok(Date.now() < end, `${what}:\n${this.output}`)
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
  }

  printed(text: string): Promise<void> {
    return this.until(`${text} was not printed`, () => this.output.includes(text))
  }

  connect(): Promise<Gateway> {
    return new Promise((resolve, reject) => {
      const socket = net.connect(this.socket)
      socket.once('error', reject)
      socket.once('connect', () => resolve(new Gateway(socket)))
    })
  }

  async call(conf: string, respond = false): Promise<[number, wire.Table]> {
    const gateway = await this.connect()
    const [kind, prepared] = await gateway.ask(wire.PREPARE_CONF, prepare('route#1', [['p', conf]]))
    assert.equal(kind, wire.PREPARE_CONF, this.output)
    const token = prepared.u32(0)
    const reply = await gateway.ask(respond ? wire.HTTP_RESP_CALL : wire.HTTP_REQ_CALL, call(token, respond ? 3 : 6))
    gateway.socket.destroy()
    return reply
  }

  async stop(): Promise<number | null> {
    if (this.child.exitCode === null) {
      this.child.kill('SIGTERM')
      await this.until('it does not end', () => this.child.exitCode !== null || this.child.signalCode !== null)
    }
    fs.rmSync(this.directory, { recursive: true })
    return this.child.exitCode
  }
}

class Gateway {
  private readonly frames = new wire.Frames()
  private readonly waiting: ((reply: [number, wire.Table]) => void)[] = []

  constructor(readonly socket: net.Socket) {
    socket.on('data', (chunk) =>
      this.frames.push(chunk, (kind, payload) => this.waiting.shift()?.([kind, wire.Table.root(payload)])),
    )
    socket.on('error', () => undefined)
  }

  ask(kind: number, payload: Buffer): Promise<[number, wire.Table]> {
    const head = Buffer.alloc(4)
    head.writeUInt32BE(((kind << 24) | payload.length) >>> 0)
    this.socket.write(Buffer.concat([head, payload]))
    return new Promise((resolve) => this.waiting.push(resolve))
  }
}

/** PrepareConf.Req: the entries are those of a reply's arguments, moved into a table of two fields. */
function prepare(key: string, pairs: wire.Pair[]): Buffer {
  // vtable {8, 12, conf, key}, table, key, then a Rewrite frame whose vector of headers `conf` points to
  const tail = wire.rewrite(0, null, pairs, [], [], null).subarray(4)
  const text = Buffer.alloc(8 + key.length - (key.length % 4))
  text.writeUInt32LE(key.length)
  text.write(key, 4)
  const head = Buffer.alloc(24)
  head.writeUInt32LE(12, 0)
  for (const [index, number] of [8, 12, 4, 8].entries()) head.writeUInt16LE(number, 4 + 2 * index)
  head.writeInt32LE(8, 12)
  const vectorInTail = vectorOf(tail)
  head.writeUInt32LE(24 + text.length + vectorInTail - 16, 16)
  head.writeUInt32LE(24 - 20, 20)
  return Buffer.concat([head, text, tail])
}

/** Where the vector of headers of a Rewrite begins. */
function vectorOf(buffer: Buffer): number {
  const follow = (at: number): number => at + buffer.readUInt32LE(at)
  const slot = (table: number, field: number): number => {
    const vtable = table - buffer.readInt32LE(table)
    return table + buffer.readUInt16LE(vtable + 4 + 2 * field)
  }
  const rewrite = follow(slot(follow(0), 2))
  return follow(slot(rewrite, 1))
}

/** A call with nothing but its id, 1, and its token in the field of that number. */
function call(token: number, field: number): Buffer {
  const fields = field + 1
  const buffer = Buffer.alloc(4 + 4 + 2 * fields + ((4 + 2 * fields) % 4) + 12)
  const vtable = 4 + ((4 + 2 * fields) % 4)
  const table = vtable + 4 + 2 * fields
  buffer.writeUInt32LE(table, 0)
  buffer.writeUInt16LE(4 + 2 * fields, vtable)
  buffer.writeUInt16LE(12, vtable + 2)
  buffer.writeUInt16LE(4, vtable + 4)
  buffer.writeUInt16LE(8, vtable + 4 + 2 * field)
  buffer.writeInt32LE(table - vtable, table)
  buffer.writeUInt32LE(1, table + 4)
  buffer.writeUInt32LE(token, table + 8)
  return buffer
}

const PLUGIN = `
module.exports = class {
  getName() { return 'p' }
  parseConf(conf) { if (conf === 'bad') throw new Error('a bad configuration'); return conf }
  async filter(conf, request, response) {
    switch (conf) {
      case 'pid': response.body = String(process.pid); break
      case 'throw': throw new Error('thrown in a filter')
      case 'status': response.status = 99; break
      case 'large': response.body = Buffer.alloc(1 << 24); break
      case 'later': setTimeout(() => { throw new Error('thrown by a timer') }, 1); break
      case 'nobody': Promise.reject(new Error('awaited by nobody')); break
      case 'late question': setTimeout(() => request.var('host').catch((e) => console.log('late:', e.message)), 1); break
      case 'die': process.exit(7)
    }
  }
  filterResponse() { throw new Error('thrown in a response') }
}`

for (const options of [[], ['--processes', '2']]) {
  test(`plugins that fail ${options.join(' ')}`, async () => {
    const runner = new Runner(PLUGIN, ...options)
    await runner.printed('listening on')
    await runner.until('no socket', () => fs.existsSync(runner.socket))
    for (const conf of ['throw', 'status', 'large']) {
      const [kind, error] = await runner.call(conf)
      assert.deepEqual([conf, kind, error.u8(0)], [conf, wire.ERROR, wire.SERVICE_UNAVAILABLE])
    }
    const [kind, error] = await runner.call('', true)
    assert.deepEqual([kind, error.u8(0)], [wire.ERROR, wire.SERVICE_UNAVAILABLE])
    await runner.printed('thrown in a response')
    for (const conf of ['later', 'nobody', 'late question']) assert.equal((await runner.call(conf))[1].u8(1), 0)
    await runner.printed('thrown by a timer')
    await runner.printed('awaited by nobody')
    await runner.printed('late: the call is over')
    assert.match(runner.output, /plugin `p` failed in call 1/)
    assert.equal((await runner.call('pid'))[1].u8(1), 1)
    assert.equal(await runner.stop(), 0)
  })
}

test('a process that dies is replaced, and knows the tokens of the others', async () => {
  const runner = new Runner(PLUGIN, '--processes', '2')
  await runner.until('two processes do not listen', () => runner.output.split('listening on').length === 3)
  const pids = new Set<string>()
  for (let times = 0; pids.size < 2; times++) {
    assert.ok(times < 1000, 'one process answers everything')
    pids.add((await runner.call('pid'))[1].table(2)?.blob(2)?.toString() ?? '')
  }
  const gateway = await runner.connect()
  const [, prepared] = await gateway.ask(wire.PREPARE_CONF, prepare('route#die', [['p', 'die']]))
  void gateway.ask(wire.HTTP_REQ_CALL, call(prepared.u32(0), 6))
  await runner.printed('has ended (7)')
  await runner.until('no other process started', () => runner.output.split('listening on').length === 4)
  for (let times = 0; times < 10; times++) assert.equal((await runner.call('pid'))[1].u8(1), 1)
  assert.equal(await runner.stop(), 0)
})

test('what cannot start', () => {
  const run = (...given: string[]): [number | null, string] => {
    const done = spawnSync(process.execPath, [PROGRAM, ...given], { env: { PATH: process.env.PATH }, encoding: 'utf8' })
    return [done.status, done.stderr + done.stdout]
  }
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'runner-'))
  const file = path.join(directory, 'no-plugin.js')
  fs.writeFileSync(file, 'module.exports = 5')
  const socket = ['--socket', path.join(directory, 'sock')]
  const cases: [string[], number, RegExp][] = [
    [[], 2, /APISIX_LISTEN_ADDRESS/],
    [['--what'], 2, /usage: runner/],
    [[...socket, '--processes', '0'], 2, /a number from 1/],
    [[...socket, '--response-headers', 'some'], 2, /all or changed/],
    [[...socket, file], 1, /is no plugin/],
    [[...socket, path.join(directory, 'none.js')], 1, /ENOENT/],
    [['--socket', file], 1, /is no socket/],
    [['--help'], 0, /usage: runner/],
    [['--version'], 0, /^0\.1\.0\n$/],
  ]
  for (const [given, code, message] of cases) {
    const [status, output] = run(...given)
    assert.equal(status, code, output)
    assert.match(output, message)
  }
  assert.equal(fs.readFileSync(file, 'utf8'), 'module.exports = 5')
  fs.rmSync(directory, { recursive: true })
})
