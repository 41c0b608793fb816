"""A report over a CSV: rows `date,region,product,quantity,price` come in as the body; sums go out.

POST /function/report                        → JSON
POST /function/report  (Accept: text/html)   → a page for people
"""

import base64
import io

import pandas as pd

COLUMNS = ["date", "region", "product", "quantity", "price"]


def handler(event, context):
    body = event.get("body") or ""
    text = base64.b64decode(body).decode() if event.get("isBase64Encoded") else body
    try:
        sales = pd.read_csv(io.StringIO(text), usecols=COLUMNS, parse_dates=["date"])
        sales["revenue"] = sales.quantity * sales.price
    except (ValueError, TypeError, pd.errors.ParserError) as error:
        return {"statusCode": 400, "body": f"Send CSV with the columns {', '.join(COLUMNS)}: {error}\n"}
    print(f"{len(sales):,} rows")

    by_region = sales.groupby("region").revenue.agg(["sum", "mean", "count"]).round(2)
    by_month = sales.groupby(sales.date.dt.strftime("%Y-%m")).revenue.sum().round(2)
    if "text/html" in event["headers"].get("accept", ""):
        page = f"<h1>Sales</h1>{by_region.to_html()}<h2>By month</h2>{by_month.to_frame().to_html()}"
        return {"statusCode": 200, "headers": {"content-type": "text/html; charset=utf-8"}, "body": page}
    return {
        "rows": len(sales),
        "revenue": round(float(sales.revenue.sum()), 2),
        "best_product": sales.groupby("product").revenue.sum().idxmax() if len(sales) else None,
        "by_region": by_region.to_dict(orient="index"),
        "by_month": by_month.to_dict(),
    }
