"""The Hub's HTTP interface, as much of it as uploading and loading a model directory needs."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = '0123456789abcdef0123456789abcdef01234567'


class Handler(BaseHTTPRequestHandler):
  """One repository after the other, each with one commit, in `server.repositories`."""

  protocol_version = 'HTTP/1.1'

  def log_message(self, *args):
    """Says nothing."""

  def answer(self, body, status=200, headers=()):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    self.send_response(status)
    for name, value in [('Content-Length', str(len(data))), *headers]:
      self.send_header(name, value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(data)

  def body(self):
    length = self.headers.get('Content-Length')
    if length is not None:
      return self.rfile.read(int(length))
    data = b''  # in pieces
    while size := int(self.rfile.readline(), 16):
      data += self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()
    return data

  def do_POST(self):
    data, there = self.body(), self.server.repositories
    self.server.requests.append((self.command, self.path, self.headers.get('Authorization')))
    if self.path == '/api/repos/create':
      asked = json.loads(data)
      name = (
        f'{asked["organization"]}/{asked["name"]}' if asked.get('organization') else asked['name']
      )
      there.setdefault(name, {})
      return self.answer({'url': f'{self.server.endpoint}/{name}', 'id': name})
    if self.path == '/api/validate-yaml':
      return self.answer({'errors': [], 'warnings': []})
    if '/preupload/' in self.path:
      files = json.loads(data)['files']
      kept = [
        {'path': f['path'], 'uploadMode': 'regular', 'shouldIgnore': False, 'oid': None}
        for f in files
      ]
      return self.answer({'files': kept})
    name = re.match(r'/api/models/([^/]+/[^/]+)/commit/', self.path)[1]
    for line in map(json.loads, data.splitlines()):
      if line['key'] == 'file':
        there[name][line['value']['path']] = base64.b64decode(line['value']['content'])
    return self.answer(
      {
        'commitUrl': f'{self.server.endpoint}/{name}/commit/{COMMIT}',
        'commitOid': COMMIT,
        'success': True,
      }
    )

  def do_GET(self):
    self.server.requests.append((self.command, self.path, self.headers.get('Authorization')))
    if match := re.match(r'/api/models/([^/]+/[^/?]+)', self.path):
      return self.describe(match[1])
    name, _, file = re.match(r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', self.path).groups()
    data = self.server.repositories[name][file]
    etag = hashlib.sha1(data).hexdigest()
    return self.answer(data, headers=[('ETag', f'"{etag}"'), ('X-Repo-Commit', COMMIT)])

  do_HEAD = do_GET  # noqa: N815

  def describe(self, name):
    files = self.server.repositories.get(name)
    if files is None:
      headers = [('X-Error-Code', 'RepoNotFound'), ('X-Error-Message', 'Repository not found')]
      return self.answer({'error': 'Repository not found'}, 404, headers)
    if '/tree/' in self.path:
      return self.answer(
        [{'type': 'file', 'path': f, 'size': len(d), 'oid': '0' * 40} for f, d in files.items()]
      )
    found = {'id': name, 'modelId': name, 'sha': COMMIT, 'private': False, 'tags': []}
    return self.answer(found | {'siblings': [{'rfilename': file} for file in files]})


def serve():
  """A server that runs in a thread of its own; its address is in `endpoint`."""
  server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  server.daemon_threads = True
  server.repositories, server.requests = {}, []
  server.endpoint = f'http://127.0.0.1:{server.server_address[1]}'
  threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
  return server
