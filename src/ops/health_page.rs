//! Reports of health checks as a page for people. APISIX: control/v1.lua `try_render_html`.
//!
//! Columns and their order are APISIX's, which its tests read; the rest is ours.
//! Invariant: nothing from a resource becomes markup.

use std::fmt::Write;

use serde_json::Value;

const COLUMNS: [&str; 9] = [
    "Index",
    "Upstream",
    "Check type",
    "Host",
    "Status",
    "Success counts",
    "TCP Failures",
    "HTTP Failures",
    "TIMEOUT Failures",
];

/// The page of some elements of `GET /v1/healthcheck`.
pub fn render(reports: &[&Value]) -> String {
    let title = "APISIX upstream check status";
    let mut page = format!(
        "<html xmlns=\"http://www.w3.org/1999/xhtml\">\n<head><title>{title}</title></head>\n<body>\n<h1>{title}</h1>\n\
         <table border=\"1\" cellpadding=\"3\" cellspacing=\"0\">\n"
    );
    row(&mut page, "th", "#C0C0C0", COLUMNS.map(str::to_owned));
    let mut index = 0;
    for report in reports {
        for node in report["nodes"].as_array().into_iter().flatten() {
            index += 1;
            let status = text(&node["status"]);
            let colour = if matches!(&*status, "healthy" | "mostly_healthy") { "#FFFFFF" } else { "#FF0000" };
            let counter = |name: &str| text(&node["counter"][name]);
            let cells = [
                index.to_string(),
                text(&report["name"]),
                text(&report["type"]),
                format!("{}:{}", text(&node["ip"]), text(&node["port"])),
                status,
                counter("success"),
                counter("tcp_failure"),
                counter("http_failure"),
                counter("timeout_failure"),
            ];
            row(&mut page, "td", colour, cells);
        }
    }
    page.push_str("</table>\n</body>\n</html>\n");
    page
}

fn row(page: &mut String, cell: &str, colour: &str, cells: [String; 9]) {
    // Writing to a String cannot fail.
    let _ = write!(page, "<tr bgcolor=\"{colour}\">");
    for text in cells {
        let _ = write!(page, "<{cell}>{}</{cell}>", escape(&text));
    }
    page.push_str("</tr>\n");
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_for_each_node() {
        let node = |port: u16, status: &str| {
            json!({"ip": "127.0.0.1", "port": port, "hostname": "h", "status": status,
                "counter": {"success": 1, "http_failure": 2, "tcp_failure": 3, "timeout_failure": 4}})
        };
        let one = json!({"name": "/upstreams/<1>", "type": "http", "nodes": [node(1980, "healthy"), node(1988, "unhealthy")]});
        let unused = json!({"name": "/upstreams/2", "type": "http", "nodes": {}});
        let page = render(&[&one, &unused]);
        assert_eq!(page.matches("<tr").count(), 3);
        let rows: Vec<&str> = page.lines().filter(|line| line.contains("<td>")).collect();
        assert!(rows[0].contains(
            "<td>1</td><td>/upstreams/&lt;1&gt;</td><td>http</td><td>127.0.0.1:1980</td><td>healthy</td>\
             <td>1</td><td>3</td><td>2</td><td>4</td>"
        ));
        assert!(rows[1].contains("#FF0000") && rows[1].contains("<td>127.0.0.1:1988</td><td>unhealthy</td>"));
    }
}
