/** The socket of the runner. */

import * as fs from 'node:fs'
import * as net from 'node:net'

import { Connection, Context } from './connection'

/** The gateway may run its workers as another user than the process that started us. */
const MODE = 0o766

/** APISIX kills a second after it has asked to stop: milliseconds for the calls under way. */
const FAREWELL = 800

/** The most bytes of a socket's path on Linux. */
const LONGEST = 107

/**
 * A socket's place. It is bound under a name of its own and then moved there: so it appears at once, a dead one gives
 * way, and closing it removes nothing that a successor has put into its place.
 */
export class Place {
  /** What to bind. */
  readonly bound: string
  private inode = 0

  constructor(readonly path: string) {
    const own = `${path}.${process.pid}`
    this.bound = Buffer.byteLength(own) > LONGEST ? path : own
  }

  /** Makes the way free. A file that is no socket stays, and binding fails. */
  clear(): void {
    for (const path of new Set([this.path, this.bound])) {
      const there = fs.lstatSync(path, { throwIfNoEntry: false })
      if (there === undefined) continue
      if (!there.isSocket()) throw new Error(`${path} is there and is no socket`)
      if (path === this.bound) fs.unlinkSync(path)
    }
  }

  /** Shows the socket that was just bound. */
  show(): void {
    if (!fs.existsSync(this.bound)) return
    fs.chmodSync(this.bound, MODE)
    if (this.bound !== this.path) fs.renameSync(this.bound, this.path)
    this.inode = fs.statSync(this.path).ino
  }

  /** Takes the socket away, unless it is a successor's. */
  leave(): void {
    try {
      if (fs.statSync(this.path).ino === this.inode) fs.unlinkSync(this.path)
    } catch {
      // somebody else was faster
    }
  }
}

/** Answers the gateway's connections. */
export class Server {
  private readonly connections = new Set<Connection>()
  private readonly server: net.Server

  constructor(context: Context) {
    this.server = net.createServer((socket) => {
      const connection = new Connection(socket, context)
      this.connections.add(connection)
      socket.on('close', () => this.connections.delete(connection))
    })
  }

  /** Resolves when it listens. */
  listen(path: string): Promise<void> {
    return new Promise((resolve, reject) => {
      this.server.once('error', reject)
      this.server.listen(path, 1024, () => resolve())
    })
  }

  /** Takes no more connections; resolves when the calls under way are answered, or when their time is over. */
  async stop(): Promise<void> {
    this.server.close()
    const end = Date.now() + FAREWELL
    while (Date.now() < end && [...this.connections].some((connection) => connection.busy)) {
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
  }
}
