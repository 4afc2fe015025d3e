package plugins

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"testing"

	pkgHTTP "github.com/apache/apisix-go-plugin-runner/pkg/http"
	upstream "github.com/apache/apisix-go-plugin-runner/pkg/httptest"
	"github.com/apache/apisix-go-plugin-runner/pkg/plugin"
)

func parse(t *testing.T, p plugin.Plugin, text string) interface{} {
	t.Helper()
	conf, err := p.ParseConf([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

func TestConfigurationsThatAreNoJSON(t *testing.T) {
	for _, p := range []plugin.Plugin{&Stop{}, &Rewrite{}, &Response{}, &Inspect{}} {
		if _, err := p.ParseConf([]byte("{")); err == nil {
			t.Errorf("%s takes {", p.Name())
		}
	}
}

func TestStop(t *testing.T) {
	p, w := &Stop{}, httptest.NewRecorder()
	p.RequestFilter(parse(t, p, `{"status": 403, "headers": {"X-A": "b"}, "body": "no"}`), w, nil)
	if w.Code != 403 || w.Header().Get("X-A") != "b" || w.Body.String() != "no" {
		t.Errorf("%d %v %q", w.Code, w.Header(), w.Body)
	}
}

// request is a request as a plugin sees it; what is not here is not called.
type request struct {
	pkgHTTP.Request
	path        string
	header      header
	args        url.Values
	respHeaders http.Header
}

type header struct{ http.Header }

func (h header) View() http.Header { return h.Header }

func (r *request) SetPath(path []byte)     { r.path = string(path) }
func (r *request) Header() pkgHTTP.Header  { return r.header }
func (r *request) Args() url.Values        { return r.args }
func (r *request) RespHeader() http.Header { return r.respHeaders }

func TestRewrite(t *testing.T) {
	p := &Rewrite{}
	conf := parse(t, p, `{"path": "/x", "headers": {"A": "1", "B": null}, "args": {"c": "2", "d": null}, "resp_headers": {"E": "3"}}`)
	r := &request{
		header:      header{http.Header{"B": {"old"}}},
		args:        url.Values{"d": {"old"}},
		respHeaders: http.Header{},
	}
	p.RequestFilter(conf, nil, r)
	want := &request{
		path:        "/x",
		header:      header{http.Header{"A": {"1"}}},
		args:        url.Values{"c": {"2"}},
		respHeaders: http.Header{"E": {"3"}},
	}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("%+v", r)
	}
}

func TestResponse(t *testing.T) {
	p := &Response{}
	w := upstream.NewRecorder()
	w.Code, w.OriginBody = 200, []byte("found")
	p.ResponseFilter(parse(t, p, `{"status": 404, "headers": {"X-A": "b"}, "append": "!"}`), w)
	if w.StatusCode() != 404 || w.Header().Get("X-A") != "b" || w.Body.String() != "found!" {
		t.Errorf("%d %v %q", w.StatusCode(), w.Header().View(), w.Body)
	}
}
